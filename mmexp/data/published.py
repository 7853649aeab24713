"""Where the files of a published dataset can be had."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmexp.errors import ConfigError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A source of files, which only `mmexp.data fetch` looks at.

    Readers hold these by the name of their setting that the files belong to (`path`, `image_root`, ...), or by any
    other name with a `place`.
    """

    hub: str | None = None
    """Dataset of the Hugging Face hub, `owner/name`."""
    files: tuple[str, ...] = ()
    """Files of it, or of the page, by name or pattern. An archive is unpacked into the place once it lies beside it."""
    page: str | None = None
    """Address where a browser gets them; nothing is downloaded from there."""
    place: str | None = None
    """File or folder that is there once this source has arrived; null for the setting of the same name."""
    num_bytes: int | None = None
    """About how much there is to download, for when the hub cannot be asked."""

    def __post_init__(self) -> None:
        """Raises ConfigError without a hub or page, for an id that is none, or for a whole repository."""
        if self.hub is None and self.page is None:
            raise ConfigError("neither hub nor page", expected="one of them", where="hub")
        if self.hub is not None and not _HUB_ID.fullmatch(self.hub):
            raise ConfigError(f"{self.hub!r}", expected="a dataset of the hub, owner/name", where="hub")
        if self.hub is not None and not self.files:
            raise ConfigError("no files", expected="names or patterns of what is used of the dataset", where="files")
