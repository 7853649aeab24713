"""Items to a batch: rows made of segments, media stacked over M, and samples left out by a counted rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from mmexp.contracts import IGNORE, Batch, Item
from mmexp.data.dataset import Dropped
from mmexp.data.packing import next_fit
from mmexp.data.sharing import Piece, share
from mmexp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

EMPTY = "(empty)"
"""Id of the one padding position that stands in for a batch of which every sample was dropped."""


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Lays items into rows.

    Args:
        pad_id: Token id behind the last segment of a row.
        row: `flat` puts all segments into one row without padding; `padded` gives each one its own row; `packed` fills
            rows of at most `capacity` tokens in the order of the items; `shared` is flat, but for neighbours that begin
            with the same media: that beginning is a segment, and the rest of each.
        capacity: Tokens of a packed row, at least those of the longest item.
    """

    pad_id: int
    row: str = "flat"
    capacity: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown row layout."""
        if self.row not in ("flat", "padded", "packed", "shared"):
            raise ConfigError(f"{self.row!r}", expected="flat, padded, packed or shared", where="processor.row")
        if self.row == "packed" and self.capacity < 1:
            raise ConfigError(f"{self.capacity}", expected="1 token or more", where="processor.max_length_tokens")

    def __call__(self, entries: Sequence[Item | Dropped]) -> Batch:
        """The batch. Dropped entries leave no trace but their ids; a batch that lost all of them is one position that
        carries no loss, so that every rank still runs the same step.

        Raises:
            DataError: media of one modality have different shapes.
        """
        items = [entry for entry in entries if isinstance(entry, Item)]
        dropped = [entry for entry in entries if isinstance(entry, Dropped)]
        reasons = dict.fromkeys(entry.reason for entry in dropped)
        items_or_blank = items or [_blank(self.pad_id)]
        rows = self._rows(items_or_blank)
        batch_tensors = self._lay_out(rows)
        pieces = [piece.item for row in rows for piece in row]
        return Batch(
            **batch_tensors,
            **_stack_media(pieces),
            **_stack_instructions(pieces),
            **_segments(rows),
            ids=tuple(item.id for item in items_or_blank),
            datasets=tuple(item.dataset for item in items_or_blank),
            meta=tuple(item.meta for item in items_or_blank),
            num_supervised=int((batch_tensors["labels"] != IGNORE).sum()),
            dropped={reason: tuple(e.id for e in dropped if e.reason == reason) for reason in reasons},
            dropped_datasets={reason: tuple(e.dataset for e in dropped if e.reason == reason) for reason in reasons},
            bad_media=tuple(entry.bad for entry in dropped if entry.bad),
            num_dropped_turns=sum(item.num_dropped_turns for item in items),
            num_cut_tokens=sum(item.num_cut_tokens for item in items),
        )

    def _rows(self, items: Sequence[Item]) -> list[list[Piece]]:
        """The items row by row."""
        if self.row == "shared":
            return [share(items)]
        pieces = [Piece(item) for item in items]
        if self.row == "padded":
            return [[piece] for piece in pieces]
        if self.row == "flat":
            return [pieces]
        ends = list(accumulate(next_fit([len(item.input_ids) for item in items], self.capacity)))
        return [pieces[start:end] for start, end in pairwise([0, *ends])]

    def _lay_out(self, rows: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """`input_ids`, `labels`, `positions` and `slots` of the rows."""
        import torch  # not at the top: the config door reads this room's dataclasses and must stay fast

        length = max(sum(len(item.input_ids) for item, *_ in row) for row in rows)
        shape = (len(rows), length)
        input_ids, labels = torch.full(shape, self.pad_id), torch.full(shape, IGNORE)
        positions = torch.zeros(shape, dtype=torch.int64)
        slots: dict[str, Tensor] = {}
        for number, row in enumerate(rows):
            start = 0
            for item, first, _ in row:
                end, unpredicted = start + len(item.input_ids), first == 0
                input_ids[number, start:end] = item.input_ids
                labels[number, start + unpredicted : end] = item.labels[unpredicted:]
                positions[number, start:end] = torch.arange(first, first + end - start)
                for run in item.runs:
                    slot = slots.setdefault(run.modality, torch.zeros(shape, dtype=torch.bool))
                    slot[number, start + run.start : start + run.start + run.length] = True
                start = end
        return {"input_ids": input_ids, "labels": labels, "positions": positions, "slots": slots}


def _segments(rows: Sequence[Sequence[Piece]]) -> dict[str, Any]:
    """`segment_lengths` and `prompt_lengths`; `followers` and `previous` where pieces go on from others."""
    import torch

    lengths = tuple(tuple(len(piece.item.input_ids) for piece in row) for row in rows)
    followers = tuple(tuple(piece.num_followers for piece in row) for row in rows)
    if not any(map(any, followers)):
        prompts = tuple(tuple(_prompt_length(piece.item) for piece in row) for row in rows)
        return {"segment_lengths": lengths, "prompt_lengths": prompts}
    (row,), (counts,) = lengths, followers
    starts = [0, *accumulate(row)]
    previous = torch.arange(starts[-1]) - 1
    for at, count in enumerate(counts):
        for follower in range(at + 1, at + 1 + count):
            previous[starts[follower]] = starts[at + 1] - 1
    return {"segment_lengths": lengths, "followers": followers, "previous": previous}


def _prompt_length(item: Item) -> int:
    """Positions in front of the first target; the first of all can be none (nothing predicts it)."""
    targets = (item.labels[1:] != IGNORE).nonzero()
    return 1 + int(targets[0]) if len(targets) else len(item.labels)


def _stack_media(items: Sequence[Item]) -> dict[str, Any]:
    """`slot_lengths`, `media_owners`, `views`, `gather` and `blend`, in the order of the slots; and what
    `_values_and_features` makes of the media."""
    import torch

    values: dict[str, list[Tensor]] = {}
    keys: dict[str, tuple[str, ...]] = {}
    hits: dict[str, tuple[bool, ...]] = {}
    lengths: dict[str, tuple[int, ...]] = {}
    owners: dict[str, tuple[str, ...]] = {}
    views: dict[str, tuple[int, ...]] = {}
    gather: dict[str, list[Tensor]] = {}
    blend: dict[str, list[Tensor]] = {}
    for item in items:
        for modality, media in item.media.items():
            for number, order in enumerate(item.gather.get(modality, ())):
                first = sum(views.get(modality, ())) + sum(item.views[modality][:number])
                gather.setdefault(modality, []).append(order + torch.tensor([first, 0]))
            if modality in item.blend:
                blend.setdefault(modality, []).extend(item.blend[modality])
            values.setdefault(modality, []).extend(media)
            owners[modality] = owners.get(modality, ()) + (item.id,) * len(media)
            if modality in item.views:
                views[modality] = views.get(modality, ()) + item.views[modality]
            if modality in item.keys:
                keys[modality] = keys.get(modality, ()) + item.keys[modality]
                hits[modality] = hits.get(modality, ()) + item.hits[modality]
        for run in item.runs:
            lengths[run.modality] = (*lengths.get(run.modality, ()), run.length)
    joined: dict[str, dict[str, Tensor]] = {"media": {}, "features": {}, "order": {}}
    for modality, tensors in values.items():
        are_features = hits.get(modality, (False,) * len(tensors))
        found = _values_and_features(modality, tensors, are_features, owners[modality], modality in views)
        for name, tensor in found.items():
            joined[name][modality] = tensor
    places = {"gather": _cat(gather), "blend": _cat(blend), "keys": keys, "hits": hits}
    return {"slot_lengths": lengths, "media_owners": owners, "views": views, **joined, **places}


def _stack_instructions(items: Sequence[Item]) -> dict[str, Any]:
    """`instructions` and `instruction_masks`; all views of a medium stand beside the same one."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows: dict[str, list[Tensor]] = {}
    for item in items:
        for modality, each in item.instructions.items():
            views = item.views.get(modality, (1,) * len(each))
            repeated = [ids for ids, count in zip(each, views, strict=True) for _ in range(count)]
            rows.setdefault(modality, []).extend(repeated)
    seen = {modality: [torch.ones_like(ids, dtype=torch.bool) for ids in each] for modality, each in rows.items()}
    return {
        "instructions": {modality: pad_sequence(each, batch_first=True) for modality, each in rows.items()},
        "instruction_masks": {modality: pad_sequence(each, batch_first=True) for modality, each in seen.items()},
    }


def _values_and_features(
    modality: str, tensors: Sequence[Tensor], are_features: Sequence[bool], owners: Sequence[str], has_views: bool
) -> dict[str, Tensor]:
    """`media`, `features` and `order` of one modality, as far as the batch has them. A tensor that several items hold,
    the very object, is there once."""
    import torch

    places = {id(tensor): place for place, tensor in reversed(list(enumerate(tensors)))}
    if len(places) < len(tensors) and not any(are_features):
        firsts = sorted(places.values())
        counts = [len(tensors[first]) if has_views else 1 for first in firsts]
        stretches = dict(zip(firsts, torch.arange(sum(counts)).split(counts), strict=True))
        once = [tensors[first] for first in firsts]
        found = _values_and_features(
            modality, once, [False] * len(once), [owners[first] for first in firsts], has_views
        )
        return found | {"order": torch.cat([stretches[places[id(tensor)]] for tensor in tensors])}
    found: dict[str, Tensor] = {}
    for name, wanted in (("media", False), ("features", True)):
        chosen = [number for number, kept in enumerate(are_features) if kept == wanted]
        if chosen:
            _check_shapes(modality, [tensors[n] for n in chosen], [owners[n] for n in chosen], has_views)
            found[name] = (torch.cat if has_views else torch.stack)([tensors[n] for n in chosen])
    if len(found) == 2:
        counts = [len(tensor) if has_views else 1 for tensor in tensors]
        is_feature = torch.tensor(are_features).repeat_interleave(torch.tensor(counts))
        later, earlier = is_feature.cumsum(0) - 1, (~is_feature).cumsum(0) - 1
        found["order"] = torch.where(is_feature, len(found["media"]) + later, earlier)
    return found


def _check_shapes(modality: str, tensors: Sequence[Tensor], owners: Sequence[str], has_views: bool) -> None:
    one = slice(1 if has_views else 0, None)  # the number of views may differ
    odd = next((index for index, v in enumerate(tensors) if v.shape[one] != tensors[0].shape[one]), None)
    if odd is not None:
        raise DataError(
            f"{modality} of shape {tuple(tensors[odd].shape)} beside {tuple(tensors[0].shape)}",
            expected="one shape for all media of a batch",
            where=f"samples {owners[odd]!r} and {owners[0]!r}",
            fix="check the encoder's transform",
        )


def _cat(pieces: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    import torch

    return {modality: torch.cat(each) for modality, each in pieces.items()}


def _blank(pad_id: int) -> Item:
    import torch

    labels = torch.tensor([IGNORE])
    return Item(id=EMPTY, dataset="", input_ids=torch.tensor([pad_id]), labels=labels, runs=(), media={})
