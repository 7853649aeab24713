"""The README.md of an exported folder: how to use it, where it comes from, what was compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from mmexp.hf.verify import Agreement
    from mmexp.model import Plan

_PIXELS = {
    "crop": "The shorter side is resized, then the centre is cut out.",
    "pad": "The picture is padded to a square with the mean colour, then resized.",
    "squash": "The picture is resized to a square; its proportions change.",
}
_USE = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
question = [{"type": "image", "image": "photo.jpg"}, {"type": "text", "text": "What is in the picture?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": question}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=64STOP)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def render_card(plan: Plan, agreement: Agreement, lineage: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """Markdown with a metadata head.

    Args:
        plan: Of the exported model.
        agreement: What the comparison found.
        lineage: Manifests of the run and of those before it, the newest first.
        notes: Sentences on what transformers does differently.
    """
    newest = lineage[0]
    bases = [base for base in dict(newest.get("base") or {}).values() if base]
    head = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["mmexp", "llava"]}
    public = [base for base in bases if base.count("/") == 1 and not base.startswith((".", "/", "{"))]
    head |= {"base_model": public} if public else {}
    stop = plan.template.stop
    use = _USE.replace("STOP", f", stop_strings=[{json.dumps(stop)}], tokenizer=processor.tokenizer" if stop else "")
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {newest.get('recipe', 'mmexp')} / {newest.get('stage', '')}",
        use,
        "## Pictures and prompt",
        f"{_PIXELS[plan.image_fit]} One picture takes {plan.inputs['image'].num_soft_tokens} positions. The prompt is "
        f"the template `{plan.template.name}`; `chat_template.jinja` gives the same token ids.",
        *(f"- {note}" for note in notes),
        "## Compared with the model that was trained",
        _table(agreement),
        "## Where it comes from",
        *(_origin(manifest) for manifest in lineage),
    ]
    return "\n\n".join(lines) + "\n"


def export_notes(plan: Plan, is_linear: bool) -> list[str]:
    """What the transformers side cannot do as we do."""
    notes = []
    if plan.exact_pixels:
        notes.append('Training resized with Pillow; `AutoProcessor.from_pretrained(..., backend="pil")` does so too,'
                     " the default resizes with torch.")  # fmt: skip
    else:
        notes.append("Training decoded large JPEG files smaller; transformers decodes them whole, so pixels of"
                     " such files differ slightly.")  # fmt: skip
    if plan.template.stop:
        notes.append(f"Answers end at the text {plan.template.stop!r}, which a generation config cannot hold: pass"
                     " `stop_strings` as above.")  # fmt: skip
    if is_linear:
        notes.append("The connector has one layer; the class always has two, so the other is the identity and"
                     " `projector_hidden_act` is `linear`.")  # fmt: skip
    notes.append("What people type can become control tokens here (`</s>`, `<image>`); mmexp keeps it text.")
    return notes


def _table(agreement: Agreement) -> str:
    rows = {
        "questions compared": agreement.num_probes,
        "token ids": "equal",
        "largest difference of logits": f"{agreement.logits:.2g} (largest logit {agreement.scale:.3g})",
        "difference of normalised pixels": f"{agreement.pixels:.2g} at most, {agreement.mean_pixels:.2g} on average",
        "greedy answers": "equal",
    }
    return "\n".join(["| what | found |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _origin(manifest: Mapping[str, Any]) -> str:
    git, versions = manifest.get("git") or {}, manifest.get("versions") or {}
    code = str(git.get("commit", "unknown"))[:12] + (" with local changes" if git.get("changed") else "")
    trained = [f"{part['name']} ({part['policy']})" for part in manifest.get("parts", []) if part["num_trained"]]
    facts = {
        "stage": manifest.get("stage"),
        "started": manifest.get("started"),
        "seed": manifest.get("seed"),
        "steps": manifest.get("step"),
        "samples in the data": (manifest.get("derived") or {}).get("num_samples"),
        "trained": ", ".join(trained) or "nothing",
        "base weights": ", ".join(f"{k} {v}" for k, v in (manifest.get("base") or {}).items() if v),
        "code": code,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value not in (None, ""))
