"""The README.md of an exported folder: how to use it, where it comes from, what was compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from mmexp.hf.form import Comparison, Form
    from mmexp.model import Plan

_PIXELS = {
    "crop": "The shorter side is resized, then the centre is cut out.",
    "pad": "The picture is padded to a square with the mean colour, then resized.",
    "squash": "The picture is resized to a square; its proportions change.",
}
_TYPED = "What people type can become control tokens here (`</s>`, `<image>`); mmexp keeps it text."


def render_card(plan: Plan, form: Form, agreement: Comparison, lineage: Sequence[Mapping[str, Any]]) -> str:
    """Markdown with a metadata head.

    Args:
        plan: Of the exported model.
        form: Knows how the folder is used, and what transformers does differently.
        agreement: What the comparison found.
        lineage: Manifests of the run and of those before it, the newest first.
    """
    newest = lineage[0]
    bases = [base for base in dict(newest.get("base") or {}).values() if base]
    head = {"library_name": "transformers", "pipeline_tag": form.task, "tags": ["mmexp", form.tag]}
    public = [base for base in bases if base.count("/") == 1 and not base.startswith((".", "/", "{"))]
    head |= {"base_model": public} if public else {}
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {newest.get('recipe', 'mmexp')} / {newest.get('stage', '')}",
        f"```python\n{form.use()}\n```",
        "## Pictures and prompt",
        f"{_PIXELS[plan.image_fit]} One picture takes {plan.inputs['image'].num_soft_tokens} positions. The prompt is "
        f"the template `{plan.template.name}`.",
        *(f"- {note}" for note in [*_pixel_notes(plan), *form.notes(), _TYPED]),
        "## Compared with the model that was trained",
        _table(agreement.table()),
        "## Where it comes from",
        *(_origin(manifest) for manifest in lineage),
    ]
    return "\n\n".join(lines) + "\n"


def _pixel_notes(plan: Plan) -> list[str]:
    if plan.exact_pixels:
        return ['Training resized with Pillow; `AutoProcessor.from_pretrained(..., backend="pil")` does so too,'
                " the default resizes with torch."]  # fmt: skip
    return ["Training decoded large JPEG files smaller; transformers decodes them whole, so pixels of such files differ"
            " slightly."]  # fmt: skip


def _table(rows: Mapping[str, str | int]) -> str:
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
