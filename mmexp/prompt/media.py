"""The media of one sample: their sizes from the headers, the slots they take, and their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from mmexp.contracts import Box, Medium, Size, Turn
from mmexp.errors import DataError, MmexpError
from mmexp.prompt.boxes import check_medium, has_regions, map_regions
from mmexp.prompt.boxtext import WHOLE
from mmexp.prompt.image import image_size, load_sized
from mmexp.prompt.transparency import Colour

if TYPE_CHECKING:
    from torch import Tensor

Loader = Callable[[Any, str, Callable[[Size], int] | None, Colour | None], tuple[Any, Size]]
LOADERS: Mapping[str, Loader] = {"image": load_sized}
"""Per modality what turns `Medium.source` into the object that the encoder's transform takes, and its whole size."""
SIZES: Mapping[str, Callable[[Any, str], Size]] = {"image": image_size}
"""Per modality what reads the size of a medium without decoding it."""

SlotRule = Callable[[Size, int], int]
"""From the size of a medium and the number of media of its conversation to its slots."""


@runtime_checkable
class SizedTransform(Protocol):
    """A transform that knows from the size of a picture what it will show of it."""

    def __call__(self, image: Any, size: Size | None = None, num_media: int = 1) -> Tensor: ...

    def window(self, size: Size, num_media: int = 1) -> Box:
        """The frame of the view in shares of the picture; boxes are written relative to it."""
        ...

    def reduction(self, size: Size, num_media: int = 1) -> int:
        """By which of 1, 2, 4 and 8 the picture may be decoded smaller."""
        ...


@runtime_checkable
class ViewsTransform(SizedTransform, Protocol):
    """A transform that makes several views of one picture."""

    def num_views(self, size: Size, num_media: int = 1) -> int: ...

    def gather(self, size: Size, num_media: int = 1) -> Tensor | None:
        """As `Item.gather`; None when the soft tokens of all views stand in order."""
        ...

    def blend(self, size: Size, num_media: int = 1) -> Tensor | None:
        """As `Item.blend`; None where every slot holds one soft token."""
        ...


class FeatureLookup(Protocol):
    """Features of a frozen encoder that were kept, for one modality."""

    def key(self, source: Any, num_media: int = 1) -> str:
        """The name of a medium by its content, empty for one that has none.

        Args:
            source: As of `Medium`.
            num_media: Media of the conversation where the transform depends on it, else 1.
        """
        ...

    def get(self, key: str) -> Tensor | None:
        """float[P, E], or float[views, P, E] of a medium of several views; None where nothing is kept."""
        ...


class Loaded(NamedTuple):
    """One medium, ready for an `Item`, whose fields these are."""

    values: Tensor
    views: int | None = None
    """None for a medium that is one value."""
    gather: Tensor | None = None
    blend: Tensor | None = None
    key: str | None = None
    """None without a feature cache."""
    hit: bool | None = None
    """Whether `values` are features."""


@dataclass
class SampleMedia:
    """Reads the media of one sample, every header once.

    Args:
        turns: The whole conversation; media that are cut from its end later still count.
        where: Dataset and sample, for messages.
        transforms: Per modality the encoder's transform.
        exact: Never decode a picture smaller.
        backdrop: What lies under transparent pixels; None shows their hidden colour.
    """

    turns: Sequence[Turn]
    where: str
    transforms: Mapping[str, Callable[..., Tensor]]
    exact: bool = False
    backdrop: Colour | None = None
    _sizes: dict[int, Size] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.media = tuple(medium for turn in self.turns for medium in turn.media)

    def size(self, medium: Medium) -> Size:
        """Its size. Raises DataError when its modality has none, and as `image_size`."""
        if medium.modality not in SIZES:
            raise DataError(f"{medium.modality} has no size", expected=", ".join(SIZES), where=self.where)
        key = id(medium.source)
        if key not in self._sizes:
            self._sizes[key] = SIZES[medium.modality](medium.source, self.where)
        return self._sizes[key]

    def count(self, modality: str) -> int:
        """How many media of this kind the conversation has."""
        return sum(medium.modality == modality for medium in self.media)

    def slot_lengths(self, rules: Mapping[str, int | SlotRule]) -> dict[str, int | Callable[[Medium], int]]:
        """Per modality a number, or a function of the medium where its size decides."""

        def by_size(rule: SlotRule) -> Callable[[Medium], int]:
            return lambda medium: rule(self.size(medium), self.count(medium.modality))

        return {modality: rule if isinstance(rule, int) else by_size(rule) for modality, rule in rules.items()}

    def in_view(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns with their boxes relative to what the encoder sees. Raises as `map_regions`."""
        return map_regions(turns, self.window) if has_regions(turns) else turns

    def load(self, medium: Medium, kept: FeatureLookup | None = None) -> Loaded:
        """The values of a medium, and how they become views and slots; it is not decoded where its features are kept.

        Args:
            medium: One of the conversation.
            kept: Features that were kept; None without a cache.

        Raises:
            BadMediaError: it cannot be read.
            DataError: nothing here reads its modality, or it cannot be transformed.
        """
        load, transform = LOADERS.get(medium.modality), self.transforms.get(medium.modality)
        if load is None or transform is None:
            raise DataError(f"no loader or transform for {medium.modality!r}", where=self.where)
        count = self.count(medium.modality)
        key = hit = features = None
        if kept is not None:
            key = kept.key(medium.source, count if isinstance(transform, ViewsTransform) else 1)
            features = kept.get(key) if key else None
            hit = features is not None
        values = self._values(medium, load, transform, count) if features is None else features
        if not isinstance(transform, ViewsTransform):
            return Loaded(values, key=key, hit=hit)
        size = self.size(medium)
        slots = transform.gather(size, count), transform.blend(size, count)
        return Loaded(values, transform.num_views(size, count), *slots, key, hit)

    def load_all(self, media: Sequence[Medium], kept: Mapping[str, FeatureLookup]) -> dict[str, dict[str, Any]]:
        """`media`, `views`, `gather`, `blend`, `keys` and `hits` of an item. Raises as `load`."""
        names = ("media", "views", "gather", "blend", "keys", "hits")
        found: dict[str, dict[str, tuple[Any, ...]]] = {name: {} for name in names}
        for medium in media:
            loaded = self.load(medium, kept.get(medium.modality))
            for by_modality, value in zip(found.values(), loaded, strict=True):
                if value is not None:
                    by_modality[medium.modality] = (*by_modality.get(medium.modality, ()), value)
        return found

    def _values(self, medium: Medium, load: Loader, transform: Callable[..., Tensor], count: int) -> Tensor:
        """What the encoder sees of a medium."""
        sized = transform if isinstance(transform, SizedTransform) else None
        reduction = None if sized is None or self.exact else partial(sized.reduction, num_media=count)
        loaded, size = load(medium.source, self.where, reduction, self.backdrop)
        self._sizes[id(medium.source)] = size
        try:
            return transform(loaded) if sized is None else sized(loaded, size, count)
        except MmexpError:
            raise
        except (ValueError, TypeError, OSError) as error:
            raise DataError(f"the {medium.modality} cannot be transformed ({error})", where=self.where) from error

    def window(self, number: int) -> Box:
        """What the view of a medium shows, by its number in reading order, in shares of the picture.

        Raises:
            DataError: the conversation has no such medium, and as `size`.
        """
        check_medium(number, len(self.media))
        medium = self.media[number]
        transform = self.transforms.get(medium.modality)
        if not isinstance(transform, SizedTransform):
            return WHOLE
        return transform.window(self.size(medium), self.count(medium.modality))
