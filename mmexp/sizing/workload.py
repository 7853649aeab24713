"""How many samples a stage sees and how long they are: from the data when they are here, else from what is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.contracts import Hinted
from mmexp.data import MixtureConfig
from mmexp.data.dataset import evenly_spaced
from mmexp.errors import MmexpError
from mmexp.prompt import AnyRes, DynamicTiles

if TYPE_CHECKING:
    from mmexp.contracts import Dataset
    from mmexp.model import Plan

_PROBES = 256
_TOKENS_A_WORD = 1.4
"""Of English in the vocabularies of these LLMs, with the marks of a template."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Samples of a stage, in tokens as the LLM reads them, soft tokens included."""

    num_rows: int | None
    """Samples of one epoch; None when nobody knows."""
    tokens: float
    """Of the mean sample."""
    long_tokens: float
    """Of one sample in a thousand."""
    supervised: float
    """Tokens with loss of the mean sample."""
    media: float
    """Media of the mean sample."""
    source: str
    """Where the lengths come from, for the reader of the estimate."""

    def fullest(self, micro_batch_size: int, is_by_length: bool) -> float:
        """Tokens a sample in the fullest micro-batch of a run.

        The mean of m samples strays from the mean of all by a 1/sqrt(m) of what a single one does; where samples of
        like length are put together, there is a micro-batch of the longest.
        """
        stray = 1.0 if is_by_length else 1 / math.sqrt(micro_batch_size)
        return self.tokens + (self.long_tokens - self.tokens) * stray


@dataclass(frozen=True, kw_only=True)
class _Corpus:
    num_rows: int
    text: float
    """Tokens of the mean sample without soft tokens."""
    long_text: float
    supervised: float
    media: float


_CORPORA: Mapping[str, _Corpus] = {
    "blip_laion_cc_sbu_558k.json": _Corpus(num_rows=558_128, text=16, long_text=40, supervised=15, media=1),
    "llava_v1_5_mix665k.json": _Corpus(num_rows=665_298, text=254, long_text=1465, supervised=122, media=0.94),
}
"""Published corpora by file or name. Rows as published; tokens of Llama's tokenizer, of real captions and of rows put
together from real texts in the published proportions (experiments/packing.md), not of the corpora themselves."""


def workload_of(plan: Plan, data: Any, num_tokens: int | None = None, num_rows: int | None = None) -> Workload:
    """The samples of `data` under `plan`. Nothing is rendered, downloaded or decoded for it.

    Args:
        plan: Tells slots and limits.
        data: A dataset config.
        num_tokens: Tokens of every sample, when the user says so.
        num_rows: Rows of an epoch, when the user says so.
    """
    found = _from_rows(plan, data) or _from_corpus(plan, data) or _from_limits(plan)
    if num_tokens is not None:
        share = found.supervised / found.tokens
        found = replace(found, tokens=num_tokens, long_tokens=num_tokens, supervised=max(1.0, share * num_tokens),
                        source="tokens= on the command line")  # fmt: skip
    return found if num_rows is None else replace(found, num_rows=num_rows)


def slots_of_medium(plan: Plan, modality: str) -> tuple[int, int]:
    """Views and slots of one medium; of several numbers of views the largest."""
    num_views = 1
    if isinstance(plan.tiling, DynamicTiles):
        num_views = plan.tiling.max_tiles + (plan.tiling.thumbnail and plan.tiling.max_tiles > 1)
    elif isinstance(plan.tiling, AnyRes):
        largest = max(columns * rows for columns, rows in plan.tiling.grids)
        num_views = 1 + min(largest, plan.tiling.max_views or largest)
    return num_views, num_views * plan.inputs[modality].num_soft_tokens


def _slots(plan: Plan) -> int:
    return sum(slots_of_medium(plan, modality)[1] for modality in plan.inputs) if plan.spec.width else 0


def _from_limits(plan: Plan) -> Workload:
    """Every sample is as long as the processor lets it be, and its answers as long as the template lets them be."""
    limit, slots = plan.max_length_tokens, _slots(plan)
    answer = plan.template.max_answer_tokens
    text = max(1, limit - slots) if answer is None else min(limit - slots, 2 * answer)
    supervised = text if answer is None else min(text, answer)
    return Workload(num_rows=None, tokens=slots + text, long_tokens=slots + text, supervised=supervised,
                    media=float(bool(plan.inputs)),
                    source="the limits of processor and template: an upper bound")  # fmt: skip


def _from_corpus(plan: Plan, data: Any) -> Workload | None:
    names = (Path(str(getattr(data, "path", ""))).name, str(getattr(data, "name", "")))
    corpus = next((_CORPORA[name] for name in names if name in _CORPORA), None)
    if corpus is None:
        return None
    limit, slots = plan.max_length_tokens, _slots(plan)
    return Workload(
        num_rows=corpus.num_rows,
        tokens=min(limit, corpus.media * slots + corpus.text),
        long_tokens=min(limit, slots + corpus.long_text),
        supervised=corpus.supervised,
        media=corpus.media,
        source="what is known of the published corpus",
    )


def _from_rows(plan: Plan, data: Any) -> Workload | None:
    """From the rows themselves; None when they are not here, or would have to be made first."""
    if isinstance(data, MixtureConfig) or not Path(str(getattr(data, "path", ""))).is_file():
        return None
    try:
        dataset = replace(data, prepare=None).build() if hasattr(data, "prepare") else data.build()
        if not len(dataset):
            return None
        return _tokenised(plan, dataset) or _from_words(plan, dataset)
    except MmexpError:
        return None  # training says what is wrong with them; this is an estimate


def _tokenised(plan: Plan, dataset: Dataset) -> Workload | None:
    """Some rows as they would be trained, when the tokenizer is on this machine."""
    if not _tokenizer_is_here(plan):
        return None
    lengths, supervised, media = [], 0, 0
    for index in evenly_spaced(len(dataset), _PROBES):
        try:
            layout = plan.processor.layout(dataset[index])
        except MmexpError:
            continue
        lengths.append(len(layout.encoded.ids))
        supervised += layout.num_supervised
        media += len(layout.media)
    if not lengths:
        return None
    count = len(lengths)
    return Workload(num_rows=len(dataset), tokens=sum(lengths) / count, long_tokens=max(lengths),
                    supervised=supervised / count, media=media / count,
                    source=f"{count:,} of the {len(dataset):,} rows, tokenised")  # fmt: skip


def _from_words(plan: Plan, dataset: Dataset) -> Workload | None:
    if not isinstance(dataset, Hinted):
        return None
    import numpy as np

    hints = np.asarray(dataset.hints())
    lengths = np.minimum(np.abs(hints) * _TOKENS_A_WORD + (hints > 0) * _slots(plan), plan.max_length_tokens)
    return Workload(num_rows=len(hints), tokens=float(lengths.mean()), long_tokens=float(np.percentile(lengths, 99.9)),
                    supervised=float(np.abs(hints).mean()) * _TOKENS_A_WORD / 2, media=float((hints > 0).mean()),
                    source=f"the words of all {len(hints):,} rows, {_TOKENS_A_WORD} tokens each")  # fmt: skip


def _tokenizer_is_here(plan: Plan) -> bool:
    """Whether the tokenizer can be read without a network."""
    source = getattr(plan.llm, "tokenizer", None) or getattr(plan.llm, "path", None)
    return source is None or Path(source).expanduser().is_dir()
