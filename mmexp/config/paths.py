"""Where the configuration files are."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The folder of groups: inside an installed package, or beside it in a checkout."""
    inside, beside = PACKAGE / "conf", PACKAGE.parent / "conf"
    return inside if inside.is_dir() else beside


def parts_dir() -> Path:
    """The folder of the small pretrained parts that ship with the package."""
    return PACKAGE / "shapes" / "parts"


def groups(conf_dirs: list[Path]) -> dict[str, list[str]]:
    """Every group with its choices; a choice in a subfolder is written `folder/name`.

    The choices of `experiments` are in the working directory, which is the repository for who works in a checkout.
    """
    found: dict[str, set[str]] = {}
    for root in conf_dirs:
        for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
            names = {file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")}
            found.setdefault(folder.name, set()).update(names)
    found["experiments"] = {file.stem for file in Path("experiments").glob("*.yaml")}
    return {group: sorted(names) for group, names in sorted(found.items())}
