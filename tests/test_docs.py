"""The commands of the README are run as they stand, only smaller; the map of groups is what `conf/` holds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python -m mmexp")
]
SMALLER = {
    "mmexp.train": ["trainer.max_steps=2", "logger=none"],
    "mmexp.pipeline": ["trainer.max_steps=2", "logger=none"],
}
FEWER = [f"evaluation.{name}.limit=4" for name in ("vqa", "caption", "grounding")]


def test_every_group_and_choice_is_on_the_map() -> None:
    from mmexp.config.paths import conf_dir, groups

    found = groups([conf_dir()])
    for group in ("encoder", "connector", "llm", "template", "data", "objective", "recipe", "scale", "evaluation"):
        row = next(line for line in README.splitlines() if line.startswith(f"| `{group}`"))
        listed = {name.strip() for name in row.split("|")[2].split(",")}
        assert listed == set(found[group]), group


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) >= 7
    assert {"make demo", "make test"} <= {line.split("  ")[0].strip() for line in README.splitlines()}


@pytest.mark.slow
def test_readme_commands_run_in_order(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        extra = SMALLER.get(words[1], [])
        if words[1] in SMALLER and "-m" not in words[2:]:
            extra = extra + FEWER
        done = subprocess.run(
            [sys.executable, *words, *extra],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    run = tmp_path / "outputs" / "llava15" / "llava15_instruct" / "tour"
    assert (run / "report.html").is_file()
    assert (run / "contact_sheet.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(
    notebook: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("MMEXP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))  # the world is rendered once
    content = nbformat.read(notebook, as_version=4)
    NotebookClient(content, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
