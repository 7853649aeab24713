"""Any data at all: the format is told from the content, so that `data=auto data.path=...` is enough."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from mmexp.contracts import Dataset
from mmexp.data.readers.parts import check_limit
from mmexp.data.readers.sniff import sniff
from mmexp.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AutoConfig:
    """Any format that has a reader, told by content; the log says which one and why."""

    path: str
    image_root: str | None = None
    """Folder that image paths are relative to; null for the folder of the file."""
    name: str | None = None
    """Name in messages and counts; null for the file's name."""
    limit: int | None = None
    """Only the first so many rows."""
    image_name: str | None = None
    """File of a picture under the image folder, for formats that only have its id; null for the format's own."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a limit below 1."""
        check_limit(self.limit)

    def build(self) -> Dataset:
        """Tells the format, then reads with its reader.

        Raises:
            DataError: no such path, no known format (what was seen and which is nearest), or as that reader says.
        """
        return self.reader().build()

    def build_tolerant(self) -> tuple[Dataset, list[DataError]]:
        """As `build`; rows that cannot be used are left out and told of, where the reader knows how to."""
        return build_tolerant(self.reader())

    def reader(self) -> Any:
        """The settings of the reader that the content asks for. Raises DataError as `build`."""
        found = sniff(self.path)
        log.info("%s is read as %s: %s", self.path, found.name, found.reason)
        takes = found.reader.__dataclass_fields__  # type: ignore[attr-defined]  # all readers are dataclasses
        given = {
            key: getattr(self, key)
            for key in ("image_root", "name", "limit", "image_name")
            if getattr(self, key) is not None
        }
        if without_effect := [key for key in given if key not in takes]:
            log.warning("data.%s has no effect on %s", ", data.".join(without_effect), found.name)
        settings = {**dict(found.settings), **{key: value for key, value in given.items() if key in takes}}
        return found.reader(path=self.path, **settings)


def build_tolerant(config: Any) -> tuple[Dataset, list[DataError]]:
    """The dataset of a reader's settings without the rows that cannot be used, and what is wrong with those.

    Readers that have no rows of their own (tars, tables) name broken samples when they are read.
    """
    tolerant = getattr(config, "build_tolerant", None)
    return tolerant() if tolerant is not None else (config.build(), [])
