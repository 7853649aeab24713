"""Several datasets in one run: how much of each, and in which proportion."""

from __future__ import annotations

import hashlib
import logging
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from mmexp.contracts import Dataset, Sample
from mmexp.data.dataset import fingerprint
from mmexp.data.hints import word_hints
from mmexp.data.subset import check_rule, choose
from mmexp.errors import ConfigError, MmexpError

if TYPE_CHECKING:
    from numpy import ndarray

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
Mixing = Literal["natural", "weights", "temperature", "sqrt"]


@runtime_checkable
class DatasetConfig(Protocol):
    """The settings of a dataset."""

    def build(self) -> Dataset: ...


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """One dataset of a mixture."""

    data: DatasetConfig
    """Any dataset but another mixture."""
    weight: float = 1.0
    """Above 0. `natural`: passes over this part in one epoch; otherwise its share is multiplied by this."""
    subset: str | None = None
    """`first:N`, `end:N` or `random:N`, with N a number of rows or a percentage such as `10%`; null for all rows."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a weight or subset that means nothing, and for a mixture inside a mixture."""
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"{self.weight:g}", expected="a number above 0", where="weight", fix="remove the part")
        if isinstance(self.data, MixtureConfig):
            raise ConfigError("a mixture inside a mixture", where="data", fix="name its parts in the outer mixture")
        if self.subset is not None:
            check_rule(self.subset)


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Several datasets in one run.

    Source: temperature as in multilingual training (share of a part in proportion to size^(1/T)); the square root of
    the size as in InstructBLIP, section 2.3; repeats of whole parts as in InternVL's `repeat_time`.
    """

    parts: Mapping[str, PartConfig]
    """By name; the name stands in messages, counts and records."""
    mixing: Mixing = "natural"
    """`natural`: an epoch has every row `weight` times. `weights`: shares follow the weights. `temperature`: shares
    follow weight * rows^(1/temperature). `sqrt`: temperature 2. But for `natural`, parts repeat at their own pace."""
    temperature: float = 1.0
    """At least 1; 1 is in proportion to size, a large one is even. Only for `temperature`."""
    epoch_samples: int | None = None
    """Samples of one epoch where shares are set; null for as many as the parts have rows."""
    homogeneous: bool = False
    """All samples of a micro-batch, over all ranks, come from one part. With `natural`, with packed rows, and with
    `processor.order=modality_length`, what is left of the parts at the end of an epoch shares its last micro-batches
    (of LLaVA's groups, the last optimizer steps), so that an epoch stays exact."""

    def __post_init__(self) -> None:
        """Raises ConfigError for no part, odd names, and settings that have no effect."""
        if not self.parts:
            raise ConfigError("no part", expected="at least one dataset by name", where="parts")
        for name in self.parts:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"the name {name!r}", expected="letters, digits, `_`, `-` and `.`", where="parts")
        if not 1 <= self.temperature < float("inf"):
            raise ConfigError(f"{self.temperature:g}", expected="a number of at least 1", where="temperature")
        if self.temperature != 1 and self.mixing != "temperature":
            raise ConfigError(
                f"{self.temperature:g} has no effect while mixing is {self.mixing}",
                where="temperature",
                fix="mixing=temperature",
            )
        if self.epoch_samples is not None and (self.mixing == "natural" or self.epoch_samples < 1):
            found = "has no effect while mixing is natural" if self.mixing == "natural" else "is no size of an epoch"
            raise ConfigError(
                f"{self.epoch_samples} {found}", expected="null, or a number above 0", where="epoch_samples"
            )

    def build(self) -> Mixture:
        """Opens every part.

        Raises:
            DataError: of a part, with its name; or a subset of more rows than there are.
        """
        mixture = self.mix([self.open(name) for name in self.parts])
        for part, quota in zip(mixture.parts, mixture.quotas(), strict=True):
            if quota < 1:
                log.warning("data.parts.%s gives %.2g samples an epoch: raise its weight", part.name, float(quota))
        return mixture

    def open(self, name: str) -> Part:
        """One part alone. Raises as `build`."""
        part = self.parts[name]
        with naming_part(name):
            return Part(name, choose(part.data.build(), part.subset, name), part.weight)

    def mix(self, parts: Sequence[Part]) -> Mixture:
        """The mixture of parts that were opened."""
        return Mixture(
            parts,
            mixing=self.mixing,
            temperature=2.0 if self.mixing == "sqrt" else self.temperature,
            epoch_samples=self.epoch_samples,
            homogeneous=self.homogeneous,
        )


@dataclass(frozen=True)
class Part:
    """A named dataset with its weight."""

    name: str
    dataset: Dataset
    weight: float = 1.0


class Mixture(Dataset):
    """The rows of all parts, one part behind the other; `mmexp.data.order` draws from it.

    Args:
        parts: With different names.
        mixing: See `MixtureConfig`, as the rest.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        mixing: Mixing = "natural",
        temperature: float = 1.0,
        epoch_samples: int | None = None,
        homogeneous: bool = False,
    ) -> None:
        self.parts, self.mixing, self.homogeneous = tuple(parts), mixing, homogeneous
        self._temperature, self._epoch_samples = temperature, epoch_samples
        self.offsets = [0, *accumulate(len(part.dataset) for part in self.parts)]
        """First index of each part, and the number of all rows."""

    def __len__(self) -> int:
        return self.offsets[-1]

    def __getitem__(self, index: int) -> Sample:
        """The sample, with the part's name as its dataset. Errors name the part."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = bisect_right(self.offsets, index) - 1
        part = self.parts[number]
        with naming_part(part.name):
            return replace(part.dataset[index - self.offsets[number]], dataset=part.name)

    @property
    def fingerprint(self) -> str:
        """Hash of names and rows of all parts. Proportions are not in it; see `identity`."""
        facts = [(part.name, fingerprint(part.dataset)) for part in self.parts]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def hints(self) -> ndarray:
        """See `mmexp.contracts.Hinted`."""
        import numpy as np

        return np.concatenate([word_hints(part.dataset) for part in self.parts])

    def kinds(self) -> ndarray:
        """int64[rows], the number of the part of each row."""
        import numpy as np

        return np.repeat(np.arange(len(self.parts)), np.diff(self.offsets))

    def quotas(self) -> list[Fraction]:
        """Samples that each part gives in one round, above 0."""
        sizes = [len(part.dataset) for part in self.parts]
        weights = [_rounded(part.weight, 10**6) for part in self.parts]
        if self.mixing == "natural":
            return [weight * size for weight, size in zip(weights, sizes, strict=True)]
        power = 0.0 if self.mixing == "weights" else 1 / self._temperature
        shares = [float(weight) * size**power for weight, size in zip(weights, sizes, strict=True)]
        total = self._epoch_samples or sum(sizes)
        return [_rounded(total * share / sum(shares), 1000) for share in shares]

    def identity(self) -> dict[str, str]:
        """What must be equal for a position of the run to mean the same samples, in words for messages."""
        parts = [
            f"{part.name}: {len(part.dataset)} rows ({fingerprint(part.dataset)[:8]}), weight {part.weight:g}"
            for part in self.parts
        ]
        named = f"{self.mixing}, temperature {self._temperature:g}" if self.mixing == "temperature" else self.mixing
        size = f", epochs of {self._epoch_samples}" if self._epoch_samples else ""
        return {
            "data.parts": "; ".join(parts),
            "data.mixing": named + size,
            "data.homogeneous": str(self.homogeneous).lower(),
        }


def _rounded(value: float, max_denominator: int) -> Fraction:
    """A fraction with a small denominator, so that the last bit of a power decides nothing; but never 0."""
    exact = Fraction(value)
    return exact.limit_denominator(max_denominator) or exact


@contextmanager
def naming_part(name: str) -> Iterator[None]:
    """Puts the name of a part in front of where an error says it was found."""
    try:
        yield
    except MmexpError as error:
        error.where = f"data.parts.{name}: {error.where}" if error.where else f"data.parts.{name}"
        error.args = (error.render(),)
        raise
