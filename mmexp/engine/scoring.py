"""How likely a model finds given answers: the score predictor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mmexp.contracts import IGNORE, Item, Sample, Text, Turn
from mmexp.data import Collator
from mmexp.errors import ConfigError, DataError
from mmexp.evaluation import Score
from mmexp.prompt.exchanges import describe

if TYPE_CHECKING:
    from mmexp.model import MultimodalModel, Plan


def score_answers(
    model: MultimodalModel,
    plan: Plan,
    samples: Sequence[Sample],
    candidates: Sequence[Sequence[str]],
    with_end: bool = False,
) -> list[list[Score]]:
    """Log-probabilities of candidates as the answers to conversations, in one batch; see `Generator.score`.

    What the candidates of a sample have in common, and samples about the same media, is computed once. An LLM that
    cannot share beginnings reads every prompt once for each candidate, but every medium is still encoded once.

    Args:
        model: In eval mode.
        plan: The plan it was built from.
    """
    if not plan.spec.width:
        raise ConfigError("this run has no LLM, which would score answers", expected="a run with an LLM",
                          where="evaluation", fix="a benchmark for what the run has learned")  # fmt: skip
    items = _items(plan, samples, candidates, with_end)
    if not items:
        return [[] for _ in samples]
    row = "shared" if model.llm.shares_beginnings else "padded"
    batch = Collator(pad_id=plan.tokenizer.pad_id, row=row)(items).to(next(model.parameters()).device)
    pairs = zip(model.score(batch), items, strict=True)
    scores = iter([Score(log_prob, item.num_supervised) for log_prob, item in pairs])
    return [[next(scores) for _ in texts] for texts in candidates]


def _items(plan: Plan, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], with_end: bool) -> list[Item]:
    """One item for each candidate, in order; equal media are loaded once, and are then the same tensors."""
    loaded: dict[Any, Item] = {}
    items: list[Item] = []
    for sample, texts in zip(samples, candidates, strict=True):
        for text in texts:
            answered = replace(sample, turns=(*sample.turns, _answer(sample, text)))
            layout = plan.processor.answer_layout(answered, with_end)
            media = tuple(medium.identity for medium in layout.media), layout.instructions
            if media not in loaded:
                loaded[media] = plan.processor.load(layout, answered)
            ids, supervised = torch.tensor(layout.encoded.ids), torch.tensor(layout.encoded.supervised)
            labels = ids.masked_fill(~supervised, IGNORE)
            own = {"id": sample.id, "dataset": sample.dataset, "runs": tuple(layout.encoded.runs)}
            items.append(replace(loaded[media], **own, input_ids=ids, labels=labels))
    return items


def _answer(sample: Sample, text: str) -> Turn:
    """Raises DataError for a text without words, of which no token could be scored."""
    if not text.strip():
        raise DataError(f"the candidate {text!r}", expected="a text", where=describe(sample),
                        fix="leave empty candidates out")  # fmt: skip
    return Turn(role="assistant", parts=(Text(text=text),))
