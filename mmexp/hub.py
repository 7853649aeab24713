"""Where a checkpoint's files are: a local folder, the Hugging Face cache, or the hub.

Every hub id may be a local folder. Facts that a plan needs before any weight is read (widths, layers, grids) come from
the checkpoint's own `config.json`. Where that is not on this machine, the copy of the published one in
`published.json` stands in, so that a plan can be made offline; building compares it with the real file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmexp.errors import CheckpointError, ConfigError

_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")
_PUBLISHED = Path(__file__).with_name("published.json")


@lru_cache(maxsize=1)
def published() -> dict[str, dict[str, Any]]:
    """Hub id -> the fields of its published config.json that matter here, with the tokenizer's special tokens.

    Some have `tokens`: how many the tokenizer has, and the special ones, for plans that add further ones.
    """
    return json.loads(_PUBLISHED.read_text(encoding="utf-8"))


def published_ids(path: str, new_tokens: Sequence[str]) -> range | None:
    """The ids that a published tokenizer gives to those of `new_tokens` that it lacks; None where they are unknown."""
    card = published().get(path, {}).get("tokens")
    if card is None:
        return None
    return range(card["count"], card["count"] + sum(token not in card["special"] for token in new_tokens))


def is_local(path: str) -> bool:
    """Whether `path` is written as a file path (and not as a hub id `owner/name`)."""
    return Path(path).is_dir() or path.startswith((os.sep, ".", "~")) or path.count("/") > 1


def resolve(path: str, where: str) -> str:
    """The local folder behind `path`, or `path` itself when it is a hub id.

    Raises:
        ConfigError: `path` is written as a folder that does not exist or has no config.json.
    """
    if not is_local(path):
        return path
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"no such folder: {path}", where=where, fix="check the path, or give a hub id owner/name")
    if not (folder / "config.json").is_file():
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise ConfigError(f"{path} holds {names}", expected="a transformers checkpoint with a config.json", where=where)
    return str(folder)


def read_config(path: str, revision: str | None, where: str) -> dict[str, Any]:
    """The checkpoint's config.json as a plain dictionary, from the first place that has it.

    The order is local folder, local cache, the published copy in this package, and last the hub.

    Raises:
        ConfigError: None of them has it.
    """
    source = resolve(path, where)
    if is_local(source):
        return json.loads(Path(source, "config.json").read_text(encoding="utf-8"))
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json", revision=revision)
    if isinstance(cached, str):
        return json.loads(Path(cached).read_text(encoding="utf-8"))
    if source in published():
        card = published()[source]
        return {key: value for key, value in card.items() if key not in ("tokenizer", "tokens")}
    try:
        return json.loads(Path(hf_hub_download(source, "config.json", revision=revision)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unavailable(source, error, where, ConfigError) from error


def weights_file(path: str, names: Sequence[str], revision: str | None, where: str) -> Path:
    """The one file of weights behind `path`: itself, or the first of `names` in a folder or a hub repository.

    Raises:
        CheckpointError: there is no such file.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return place
    if place.is_dir():
        found = next((place / name for name in names if (place / name).is_file()), None)
        if found is None:
            held = ", ".join(sorted(entry.name for entry in place.iterdir())[:8]) or "nothing"
            expected = f"one of {', '.join(names)}" if names else "a file of weights"
            raise CheckpointError(f"{path} holds {held}", expected=expected, where=where)
        return found
    if is_local(path) or is_weights_file(path) or not names:
        raise CheckpointError(f"no such file: {path}", where=where, fix=f"set {where}, or put it into MMEXP_MODELS")
    return _from_hub(path, names, revision, where)


def is_weights_file(path: str) -> bool:
    """Whether `path` names a file of weights (and not a hub id)."""
    return path.endswith(_WEIGHTS)


def _from_hub(path: str, names: Sequence[str], revision: str | None, where: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    failure: Exception = FileNotFoundError(f"none of {', '.join(names)} in it")
    for name in names:
        try:
            return Path(hf_hub_download(path, name, revision=revision))
        except LocalEntryNotFoundError as error:  # offline: another name may be in the cache
            failure = error
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            failure = error
    raise unavailable(path, failure, where.split(".")[0], CheckpointError) from failure


def unavailable(path: str, error: Exception, where: str, kind: type[ConfigError] | type[CheckpointError]) -> Exception:
    """The error for a checkpoint that is neither on this machine nor to be had, saying what to do about it."""
    setting = where if "." in where else f"{where}.path"
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return kind(
        f"cannot read {path}: {reason}",
        expected="a local folder, a model in the Hugging Face cache (HF_HOME), or a reachable hub",
        where=where,
        fix=f"download it where there is internet (`hf download {path}`) and set {setting} to that folder",
    )
