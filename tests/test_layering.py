"""Who may import whom. Every import counts: at module top, inside functions, and under TYPE_CHECKING."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "mmexp"
LINE_1 = {"contracts", "errors", "hub", "kernels", "whole"}
LINE_2 = {"encoder", "connector", "llm", "prompt"}
LINE_4 = {"objective", "tuning", "evaluation", "hf"}
BELOW_4 = LINE_1 | LINE_2 | {"model", "data"}
ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(LINE_1, LINE_1),
    **dict.fromkeys(LINE_2, LINE_1),
    "page": LINE_1,
    "inspection": BELOW_4 | {"page"},
    "model": LINE_1 | LINE_2,
    "data": LINE_1 | {"prompt"},
    **dict.fromkeys(LINE_4, BELOW_4),
    "engine": BELOW_4 | LINE_4 | {"page"},
    "sizing": BELOW_4,
    **dict.fromkeys(("config", "shapes"), LINE_1),
    **dict.fromkeys(("report", "compare"), LINE_1 | {"page"}),
    "serve": BELOW_4 | {"engine"},
    "lmms": BELOW_4 | {"answering", "config", "serve"},
    "demo": BELOW_4 | {"engine", "evaluation", "inspection", "serve"},
    "sweep": LINE_1 | {"config"},
}
"""Room -> what it may import besides itself. A module of the package that is no room is an entry point, and so is the
`__main__.py` of a room that is also a command."""
BESIDE_ENTRY_POINTS = {
    "answering",
    "assemble",
    "captioning",
    "needs",
    "present",
    "present_data",
    "present_size",
    "tracking",
}
"""Modules that entry points share: the composition root, what a recipe needs, and what commands show."""
ROOT_MODULE = "__version__"


def ours(source: str) -> Iterator[str]:
    """The first name after `mmexp` of every import in `source`: a room, a module, or a name of the package itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "mmexp":
                    yield parts[1] if len(parts) > 1 else ROOT_MODULE
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import: write the whole name"
            parts = (node.module or "").split(".")
            if parts == ["mmexp"]:
                yield from (alias.name for alias in node.names)
            elif parts[0] == "mmexp":
                yield parts[1]


def room_of(path: Path) -> str:
    return path.stem if path.name == "__main__.py" else path.relative_to(ROOT).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def complaints(room: str, source: str) -> list[str]:
    """What `source`, a file of `room`, imports against the rules."""
    found = set(ours(source)) - {room, ROOT_MODULE}
    if room in ALLOWED:
        return sorted(found - ALLOWED[room])
    return sorted(found - set(ALLOWED) - BESIDE_ENTRY_POINTS)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    wrong = complaints(room_of(path), path.read_text(encoding="utf-8"))
    assert not wrong, f"mmexp/{path.relative_to(ROOT)} must not import {', '.join(wrong)}"


def test_every_room_has_a_rule() -> None:
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= set(ALLOWED), f"say in ALLOWED what {sorted(rooms - set(ALLOWED))} may import"


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("connector", "from mmexp.encoder import HfVisionConfig", ["encoder"]),
        ("connector", "def build():\n    import mmexp.llm.causal", ["llm"]),
        ("data", "if TYPE_CHECKING:\n    from mmexp.model import Plan", ["model"]),
        ("encoder", "from mmexp import hub, engine", ["engine"]),
        ("config", "from mmexp.contracts import Batch", []),
        ("engine", "from mmexp.train import main", ["train"]),
        ("pipeline", "from mmexp.train import main", ["train"]),
        ("train", "from mmexp.engine import fit\nfrom mmexp import assemble", []),
    ],
)
def test_the_reader_sees_every_kind_of_import(room: str, source: str, wrong: list[str]) -> None:
    assert complaints(room, source) == wrong


def test_config_never_imports_torch_or_transformers() -> None:
    for path in (ROOT / "config").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            heavy = [name for name in names if name.split(".")[0] in {"torch", "transformers", "lightning"}]
            assert not heavy, f"{path.name} imports {heavy[0]}"
