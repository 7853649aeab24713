"""What an experiment needs from elsewhere: whether it is here, how large it is, and bringing it here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmexp.errors import DataError

RepoType = Literal["model", "dataset"]
WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.bin")
"""What of a model's repository is used; of the weights only one of the formats is taken."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing that has to be on this machine."""

    what: str
    """Config path, such as `llm` or `data.path`."""
    source: str | None
    """Hub id `owner/name`; None for files that only the user can provide."""
    repo_type: RepoType = "model"
    folder: Path | None = None
    """Where it goes; None for the Hugging Face cache (HF_HOME)."""
    file: Path | None = None
    """A file or folder that is there once the need is met; None asks the cache."""
    estimate_bytes: int | None = None
    """Size where the hub cannot be asked."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A need and how it stands."""

    need: Need
    is_here: bool
    num_bytes: int | None
    """What there is to download, by the hub when it can be asked."""
    is_estimate: bool = False
    remark: str = ""


def look(need: Need) -> Found:
    """Whether it is here, else its size by the hub; without a network, by the estimate."""
    if _is_here(need):
        return Found(need=need, is_here=True, num_bytes=0)
    if need.source is None:
        return Found(need=need, is_here=False, num_bytes=None, remark="not on a hub: yours to provide")
    try:
        return Found(need=need, is_here=False, num_bytes=sum(size for _, size in _files(need)))
    except OSError as error:
        return Found(
            need=need,
            is_here=False,
            num_bytes=need.estimate_bytes,
            is_estimate=True,
            remark=_reason(error),
        )


def bring(need: Need) -> Path:
    """Downloads it, or what is missing of it, and returns the folder.

    Raises:
        DataError: offline, no access, no such repository, or too little room.
    """
    from huggingface_hub import snapshot_download

    if need.source is None:
        raise DataError("nothing to download", expected=str(need.file), where=need.what, fix="put the files there")
    try:
        patterns = [name for name, _ in _files(need)]
        folder = snapshot_download(
            need.source, repo_type=need.repo_type, allow_patterns=patterns, local_dir=need.folder, max_workers=4
        )
    except Exception as error:  # as in `_files`
        raise DataError(
            f"cannot download {need.source}: {_reason(error)}",
            expected=f"a reachable hub ({os.environ.get('HF_ENDPOINT', 'the default one')}) with access to it",
            where=need.what,
            fix=f"on a machine with internet: hf download {need.source}"
            + (" --repo-type dataset" if need.repo_type == "dataset" else ""),
        ) from error
    return Path(folder)


def fetch(needs: list[Need], on_found: Callable[[Found], None], download: bool = True) -> list[Found]:
    """Looks at every need, reports it, and downloads what a hub has; returns what is still missing."""
    missing = []
    for need in needs:
        found = look(need)
        on_found(found)
        if found.is_here:
            continue
        if download and need.source is not None and not found.is_estimate:
            bring(need)
            if _is_here(need):
                continue
        missing.append(found)
    return missing


def _is_here(need: Need) -> bool:
    if need.file is not None:
        return need.file.exists()
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    names += ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return need.source is not None and any(
        isinstance(try_to_load_from_cache(need.source, name, repo_type=need.repo_type), str) for name in names
    )


def _files(need: Need) -> list[tuple[str, int]]:
    """Names and sizes of what would be downloaded. Raises OSError when the hub cannot be asked."""
    from fnmatch import fnmatch

    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    try:
        info = HfApi().repo_info(need.source or "", repo_type=need.repo_type, files_metadata=True, timeout=20)
    except Exception as error:  # its HTTP library has a family of errors of its own, which changes between releases
        raise OSError(_reason(error)) from error
    files = [(file.rfilename, file.size or 0) for file in getattr(info, "siblings", None) or []]
    if need.repo_type == "dataset":
        return [(name, size) for name, size in files if not name.startswith(".")]
    has_safe = any(name.endswith(".safetensors") for name, _ in files)
    kept = [(name, size) for name, size in files if any(fnmatch(name, pattern) for pattern in WEIGHTS)]
    return [(name, size) for name, size in kept if not (has_safe and ".bin" in name) and "/" not in name]


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
