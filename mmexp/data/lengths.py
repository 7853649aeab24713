"""Token lengths of all rows, which packing needs before the first batch: counted once, then read from a cache."""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.contracts import Dataset
from mmexp.data.dataset import evenly_spaced, fingerprint
from mmexp.data.mixture import Mixture, naming_part
from mmexp.errors import MmexpError
from mmexp.prompt import BadMediaError, OutsideViewError, Processor, TooLongError
from mmexp.whole import write_bytes

if TYPE_CHECKING:
    from numpy import ndarray

log = logging.getLogger(__name__)

_FORMAT = 1
"""Raised when what is counted changes."""
_CHUNK = 256
_PROBES = 32
_EVERY_S = 15.0


def token_lengths(
    dataset: Dataset, processor: Processor, cache: Path | None = None, num_workers: int = 0, name: str = "data"
) -> ndarray:
    """int32[rows], tokens of each sample as it would be trained; 0 for one that a counted rule leaves out.

    No medium is decoded: about 1,000 rows a second for each process. The result is kept under `cache`, by the hash of
    the data and of everything in the processor that decides lengths; a kept one is compared with a few rows first.

    Args:
        dataset: Samples; the parts of a mixture are kept one by one.
        processor: Samples to tokens.
        cache: Folder; None keeps nothing.
        num_workers: Processes that count; 0 counts in this one.
        name: For the log.

    Raises:
        DataError: a row is broken.
    """
    import numpy as np

    if isinstance(dataset, Mixture):
        pieces = []
        for part in dataset.parts:
            with naming_part(part.name):
                pieces.append(token_lengths(part.dataset, processor, cache, num_workers, part.name))
        return np.concatenate(pieces)
    file = cache / f"{_key(dataset, processor)}.npy" if cache else None
    found = _kept(file, dataset, processor) if file else None
    if found is None:
        found = _count(dataset, processor, num_workers, name)
        if file is not None:
            _keep(file, found)
    return found


def processor_fingerprint(processor: Processor) -> str:
    """A hash of everything that decides how long a sample becomes."""
    hf = processor.tokenizer.hf
    facts = {field.name: _facts(getattr(processor, field.name)) for field in fields(processor)}
    facts["tokenizer"] = [hf.backend_tokenizer.to_str(), sorted(hf.get_added_vocab().items())]
    return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()


def _facts(value: Any) -> Any:
    """The value as something whose `repr` says what it is, in every process the same."""
    if is_dataclass(value):
        return type(value).__name__, [(field.name, _facts(getattr(value, field.name))) for field in fields(value)]
    if isinstance(value, dict):
        return sorted((str(key), _facts(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return [_facts(inner) for inner in value]
    is_plain = value is None or isinstance(value, str | int | float | bool)
    return value if is_plain else getattr(value, "__qualname__", type(value).__qualname__)


def _key(dataset: Dataset, processor: Processor) -> str:
    words = f"{_FORMAT}:{fingerprint(dataset)}:{len(dataset)}:{processor_fingerprint(processor)}"
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def _length(dataset: Dataset, processor: Processor, index: int) -> int:
    try:
        layout = processor.layout(dataset[index])
    except (TooLongError, OutsideViewError, BadMediaError):
        return 0  # `TrainingData` leaves it out and counts it when its turn comes
    return len(layout.encoded.ids) if layout.num_supervised else 0


def _count(dataset: Dataset, processor: Processor, num_workers: int, name: str) -> ndarray:
    import numpy as np

    total, started, shown = len(dataset), time.monotonic(), time.monotonic()
    lengths, done = np.empty(total, dtype=np.int32), 0
    log.info("counting the tokens of %d rows of %s for packing", total, name)
    for chunk in _chunks(dataset, processor, num_workers):
        if isinstance(chunk, MmexpError):
            raise chunk
        lengths[done : done + len(chunk)] = chunk
        done += len(chunk)
        if time.monotonic() - shown > _EVERY_S:
            shown = time.monotonic()
            log.info("%s: %d of %d rows, %.0f a second", name, done, total, done / (shown - started))
    return lengths


def _chunks(dataset: Dataset, processor: Processor, num_workers: int) -> Iterator[list[int] | MmexpError]:
    from torch.utils.data import DataLoader

    counter: Any = _Counter(dataset, processor)
    return iter(DataLoader(counter, batch_size=None, num_workers=num_workers, shuffle=False))


class _Counter:
    """Chunk number to lengths, for the worker processes of torch; an error comes out as a value."""

    def __init__(self, dataset: Dataset, processor: Processor) -> None:
        self.dataset, self.processor = dataset, processor

    def __len__(self) -> int:
        return -(-len(self.dataset) // _CHUNK)

    def __getitem__(self, number: int) -> list[int] | MmexpError:
        rows = range(number * _CHUNK, min((number + 1) * _CHUNK, len(self.dataset)))
        try:
            return [_length(self.dataset, self.processor, index) for index in rows]
        except MmexpError as error:
            return error.with_traceback(None)


def _kept(file: Path, dataset: Dataset, processor: Processor) -> ndarray | None:
    """The kept lengths; None where there are none, or they are not those of this data."""
    import numpy as np

    if not file.is_file():
        return None
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s is damaged (%s); the tokens are counted again", file, error)
        return None
    probes = evenly_spaced(len(dataset), _PROBES)
    if found.shape != (len(dataset),) or any(found[at] != _length(dataset, processor, at) for at in probes):
        log.warning("%s does not fit the data any more; the tokens are counted again", file)
        return None
    return found


def _keep(file: Path, lengths: ndarray) -> None:
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, lengths, allow_pickle=False)
    write_bytes(file, buffer.getvalue())
