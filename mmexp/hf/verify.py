"""An export is done when transformers, reading the folder alone, says what our model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from mmexp.contracts import Item, Turn
from mmexp.data import Collator
from mmexp.errors import CheckpointError
from mmexp.llm import Sampling
from mmexp.prompt import load_image

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mmexp.hf.form import AnswerForm
    from mmexp.model import MultimodalModel, Plan

NUM_NEW_TOKENS = 24
_NUM_FORCED = 4
PIXEL_LIMIT = 0.1
"""Largest mean difference of normalised pixels: about seven of 255 grey levels. Resizing differs by far less."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A question about a picture, and what our model makes of it."""

    turns: tuple[Turn, ...]
    item: Item
    said: tuple[int, ...]
    """What the decoder of an encoder-decoder is fed; empty for a decoder-only LLM."""
    soft: Tensor
    """float[N, D]"""
    logits: Tensor
    """float[T, V]; with `said`, of these tokens alone"""
    answer: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The largest differences over all probes."""

    num_probes: int
    logits: float
    """Of logits, with the same pixels, on both sides."""
    scale: float
    """Largest logit, for comparison."""
    tolerance: float
    """What `logits / max(1, scale)` had to stay below."""
    pixels: float
    """Of normalised pixels, ours and those of the exported image processor."""
    mean_pixels: float
    """Mean of the same."""
    answers: tuple[str, ...]
    """Greedy answers, equal on both sides."""

    def table(self) -> dict[str, str | int]:
        """Rows of the model card."""
        return {
            "questions compared": self.num_probes,
            "token ids": "equal",
            "largest difference of logits": f"{self.logits:.2g} (largest logit {self.scale:.3g})",
            "difference of normalised pixels": f"{self.pixels:.2g} at most, {self.mean_pixels:.2g} on average",
            "greedy answers": "equal",
        }

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.num_probes} questions: logits differ by {self.logits:.2g} (largest logit {self.scale:.3g}), pixels "
            f"by {self.pixels:.2g} at most and {self.mean_pixels:.2g} on average, token ids and greedy answers are "
            "equal"
        )


def tolerance_of(model: MultimodalModel) -> float:
    """How far logits may differ, in shares of the largest one, by the least exact dtype of the weights."""
    return max(_TOLERANCE.get(parameter.dtype, 1e-4) for parameter in model.parameters())


@torch.inference_mode()
def take_probes(
    plan: Plan, form: AnswerForm, model: MultimodalModel, questions: Sequence[tuple[Turn, ...]]
) -> list[Probe]:
    """Runs our model, in eval mode on the CPU, on conversations that end with a user turn and show one picture each."""
    collate = Collator(pad_id=plan.tokenizer.pad_id, row="padded")
    probes = []
    for number, turns in enumerate(questions):
        item = form.prompt(turns, f"probe {number}")
        batch = collate([item])
        said = _forced(item) if plan.spec.reads_apart else ()
        output = model(collate([_continued(item, said)]) if said else batch)
        sampling = Sampling(
            max_new_tokens=NUM_NEW_TOKENS, stop=plan.template.stop, stop_ids=plan.tokenizer.stop_ids(plan.template)
        )
        answer = model.generate(batch, plan.hf_tokenizer, sampling)[0]
        hidden = output.hidden[:, -len(said) - 1 : -1] if said else output.hidden
        logits = model.llm.logits(hidden)[0].float()
        soft = output.soft["image"][0].float()
        probes.append(Probe(turns=turns, item=item, said=said, soft=soft, logits=logits, answer=answer))
    return probes


def _forced(item: Item) -> tuple[int, ...]:
    """Tokens that a decoder is fed, so that there are logits to compare: the last ones of the prompt."""
    return tuple(item.input_ids[-_NUM_FORCED:].tolist())


def _continued(item: Item, said: tuple[int, ...]) -> Item:
    """The prompt with an answer behind it."""
    answer = torch.tensor(said)
    return replace(item, input_ids=torch.cat([item.input_ids, answer]), labels=torch.cat([item.labels, answer]))


@torch.inference_mode()
def compare(folder: Path, form: AnswerForm, probes: Sequence[Probe], stop: str | None, tolerance: float) -> Agreement:
    """Reloads the folder with transformers' Auto classes and compares ids, pixels, soft tokens, logits and answers.

    Raises:
        CheckpointError: something differs by more than the tolerance; it says where that begins.
    """
    processor, model = reload(folder, form.auto)
    worst = {"logits": 0.0, "scale": 0.0, "pixels": 0.0, "mean_pixels": 0.0}
    for probe in probes:
        inputs = form.inputs(processor, probe.turns)
        _same_ids(probe, inputs["input_ids"][0], form, processor, folder)
        found = pixel_differences(torch.stack(probe.item.media["image"]), inputs["pixel_values"].float(), folder)
        found |= _same_logits(probe, inputs, form, model, tolerance, folder)
        _same_answer(probe, inputs, model, processor, stop, folder)
        worst = {name: max(value, found[name]) for name, value in worst.items()}
    answers = tuple(probe.answer for probe in probes)
    return Agreement(num_probes=len(probes), tolerance=tolerance, answers=answers, **worst)


def with_placeholders(item: Item, image_token_id: int) -> Tensor:
    """int64[T]: the ids with the placeholder of transformers in every slot."""
    ids = item.input_ids.clone()
    for run in item.runs:
        ids[run.start : run.start + run.length] = image_token_id
    return ids


def reload(folder: Path, auto: str) -> tuple[Any, Any]:
    """Processor and model in eval mode, as the Auto classes make them.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    import transformers

    processor: Any = transformers.AutoProcessor.from_pretrained(folder)
    model, info = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise differs(f"{kind.replace('_', ' ')}: {', '.join(map(str, sorted(info[kind])[:4]))}", folder)
    return processor, model.eval()


def picture_of(turns: Sequence[Turn]) -> Any:
    """The one picture of a conversation, decoded as the processors of transformers want it."""
    (medium,) = (medium for turn in turns for medium in turn.media)
    return load_image(medium.source, "probe")


def _same_ids(probe: Probe, theirs: Tensor, form: AnswerForm, processor: Any, folder: Path) -> None:
    ours = with_placeholders(probe.item, form.image_token_id)
    shorter = min(len(ours), len(theirs))
    different = (ours[:shorter] != theirs[:shorter]).nonzero().flatten().tolist()
    if different or len(ours) != len(theirs):
        at = different[0] if different else shorter
        here, there = (processor.tokenizer.convert_ids_to_tokens(ids[at : at + 4].tolist()) for ids in (ours, theirs))
        raise differs(f"the prompts differ from token {at} on: {here}, there {there}", folder)


def pixel_differences(ours: Tensor, theirs: Tensor, folder: Path) -> dict[str, float]:
    """`pixels` and `mean_pixels` of normalised float[M, 3, S, S]; CheckpointError where they are far apart."""
    if ours.shape != theirs.shape:
        raise differs(f"pixels are {tuple(ours.shape)}, there {tuple(theirs.shape)}", folder)
    distance = (ours - theirs).abs()
    found = {"pixels": float(distance.max()), "mean_pixels": float(distance.mean())}
    if found["mean_pixels"] > PIXEL_LIMIT:
        raise differs(f"pixels differ by {found['mean_pixels']:.3f} on average (normalised)", folder)
    return found


def _same_logits(
    probe: Probe, inputs: Any, form: AnswerForm, model: Any, tolerance: float, folder: Path
) -> dict[str, float]:
    """With our pixels, so that nothing but the two models is compared."""
    inputs["pixel_values"] = torch.stack(probe.item.media["image"]).to(model.dtype)  # also for the answers
    if probe.said:
        start = model.config.text_config.decoder_start_token_id
        inputs = {**inputs, "decoder_input_ids": torch.tensor([[start, *probe.said[:-1]]])}
    soft, logits = form.run(model, inputs)
    soft = soft.float().reshape(probe.soft.shape)
    own = (soft - probe.soft).abs().max() / max(1.0, float(probe.soft.abs().max()))
    if not own <= tolerance:
        raise differs(f"soft tokens differ by {float(own):.2g} of the largest; encoder or connector", folder)
    theirs = logits[0].float()[:, : probe.logits.shape[1]]
    distance, scale = (theirs - probe.logits).abs().amax(1), float(probe.logits.abs().max())
    if not float(distance.max()) <= tolerance * max(1.0, scale):
        at = int((distance > tolerance * max(1.0, scale)).nonzero()[0]) if distance.isfinite().all() else 0
        raise differs(f"logits differ from token {at} on, by up to {float(distance.max()):.2g}; the LLM", folder)
    return {"logits": float(distance.max()), "scale": scale}


def _same_answer(probe: Probe, inputs: Any, model: Any, processor: Any, stop: str | None, folder: Path) -> None:
    ids = model.generate(**inputs, max_new_tokens=NUM_NEW_TOKENS)[0]
    ids = ids if probe.said else ids[inputs["input_ids"].shape[1] :]
    text = processor.tokenizer.decode(ids, skip_special_tokens=True)
    text = (text.split(stop)[0] if stop else text).strip()
    if text != probe.answer:
        raise differs(f"answers {text!r}, ours {probe.answer!r}", folder)


def differs(found: str, folder: Path) -> CheckpointError:
    """The error for an export that is not what the run's model is."""
    return CheckpointError(
        found,
        expected="what the run's own model gives",
        where=f"export, read back by transformers from {folder}",
        fix="this is a defect of the export, or weights changed while it ran: keep the folder and report it",
    )
