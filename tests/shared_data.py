"""Where the tests find the real data (MMEXP_SHARED, else ../shared beside the repository), and what they read there."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared(*parts: str) -> Path:
    """A path under the shared data; skips the test when it is not on this machine."""
    folder = Path(os.environ.get("MMEXP_SHARED", ROOT.parent / "shared")) / "data"
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data not here: {'/'.join(parts)} (set MMEXP_SHARED to the folder that holds data/)")
    return path


@functools.cache
def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def load_tokenizer(name: str) -> Any:
    """A real tokenizer, read once."""
    return _tokenizer(str(shared("tokenizers", name)))


@functools.cache
def segment_tokenizer(name: str, *new_tokens: str) -> Any:
    """Our tokenizer around a real one, built once."""
    from mmexp.prompt import SegmentTokenizer

    return SegmentTokenizer(load_tokenizer(name), new_tokens)


def load_template(name: str, **changes: Any) -> Any:
    """A template of conf/template."""
    from mmexp.prompt import ChatTemplate, RegionFormat

    fields = {**_template_fields(name), **changes}
    for key in ("prompts", "new_tokens"):
        fields[key] = tuple(fields.get(key, ()))
    region = fields.pop("region", {})
    return ChatTemplate(**fields, region=region if isinstance(region, RegionFormat) else RegionFormat(**region))


def _template_fields(name: str) -> dict[str, Any]:
    """The settings of a file, on top of those of the files it starts from."""
    import yaml

    own = yaml.safe_load((ROOT / "conf/template" / f"{name}.yaml").read_text(encoding="utf-8"))
    fields: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        fields |= _template_fields(base)
    own.pop("_target_", None)
    return fields | own


def load_rows(*parts: str) -> list[dict[str, Any]]:
    """Rows of a real annotation file."""
    return json.loads(shared(*parts).read_text(encoding="utf-8"))
