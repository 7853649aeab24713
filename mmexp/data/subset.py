"""Some rows of a dataset: the first, the last, or random ones that are the same in every run."""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from mmexp.contracts import Dataset, Sample, Sharded
from mmexp.data.dataset import fingerprint
from mmexp.data.hints import word_hints
from mmexp.data.shuffle import permutation
from mmexp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy import ndarray

_RULE = re.compile(r"(first|end|random):(\d+(?:\.\d+)?)(%?)")


def check_rule(rule: str) -> None:
    """Raises ConfigError unless `rule` is one that `choose` knows."""
    found = _RULE.fullmatch(rule)
    if not found or not float(found[2]) or (float(found[2]) > 100 if found[3] else "." in found[2]):
        raise ConfigError(
            repr(rule),
            expected="first:N, end:N or random:N, with N a whole number of rows or a percentage up to 100%",
            where="subset",
            fix="random:10%",
        )


class Subset(Dataset):
    """Some rows of a dataset, in their order.

    Args:
        dataset: All rows.
        indices: int64, rising.
        rule: What chose them.
    """

    def __init__(self, dataset: Dataset, indices: ndarray, rule: str) -> None:
        self.dataset, self.indices, self.rule = dataset, indices, rule
        if isinstance(dataset, Sharded):
            ends = list(accumulate(dataset.shard_sizes))
            bounds = [0, *indices.searchsorted(ends).tolist()]
            self.shard_sizes = tuple(end - start for start, end in pairwise(bounds) if end > start)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[int(self.indices[index])]

    @property
    def fingerprint(self) -> str:
        """Hash of all rows and of the choice among them."""
        digest = hashlib.sha256(fingerprint(self.dataset).encode())
        digest.update(self.indices.tobytes())
        return digest.hexdigest()

    def hints(self) -> ndarray:
        """See `mmexp.contracts.Hinted`."""
        return word_hints(self.dataset)[self.indices]


def choose(dataset: Dataset, subset: str | None, name: str) -> Dataset:
    """The rows that `subset` names; the same ones in every run.

    Args:
        dataset: All rows.
        subset: See `PartConfig`.
        name: Of the part; different parts choose different random rows.

    Raises:
        DataError: more rows than there are, or a percentage that leaves none.
    """
    import numpy as np

    if subset is None:
        return dataset
    found = _RULE.fullmatch(subset)
    assert found, "checked by PartConfig"
    total = len(dataset)
    count = int(Fraction(found[2]) * total / 100) if found[3] else int(found[2])
    if not 0 < count <= total:
        raise DataError(
            f"{subset} would be {count} of {total} rows", expected=f"1 to {total} rows", where="subset", fix="null"
        )
    if found[1] == "random":
        indices = np.sort(permutation(total, "subset", name)[:count])
    else:
        indices = np.arange(count) + (total - count if found[1] == "end" else 0)
    return Subset(dataset, indices.astype(np.int64), subset)
