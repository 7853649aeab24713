"""Where the configuration files are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmexp.errors import ConfigError

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


def folders_of(config_dir: str | None) -> list[Path]:
    """The package's `conf/`, then the user's folder; ConfigError when that is none."""
    if config_dir is None:
        return [conf_dir()]
    folder = Path(config_dir).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"no such folder: {config_dir}", expected="a folder of groups", where="--config-dir")
    ours = conf_dir()
    for file in (file.relative_to(folder) for file in sorted(folder.rglob("*.yaml"))):
        if (ours / file).is_file():
            message = f"{file} has the name of one of ours, which goes first"
            raise ConfigError(
                message, expected="names of your own", where="--config-dir", fix=f"rename {folder / file}"
            )
    return [ours, folder]


def search_path(folders: Sequence[Path]) -> str:
    """The override that lets Hydra find the user's folder and the experiments of the working directory."""
    search = ",".join(f"'file://{folder}'" for folder in (*folders[1:], Path(".")))
    return f"hydra.searchpath=[{search}]"
