"""A run under lmms-eval: the real program, on rows of this machine, by the entry point that users have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mmexp.answering import generator_of_run
from mmexp.config import conf_dir, folders_of, registered_targets
from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.errors import ConfigError, DataError
from mmexp.llm import Sampling
from tests.serve.conftest import COLOURS

pytestmark = pytest.mark.skipif(
    find_spec("lmms_eval") is None,
    reason='needs `pip install "mmexp[lmms-eval]"` and `pip install --no-deps lmms-eval`',
)

TASK = """task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function asking.pictures
doc_to_text: !function asking.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 8, until: ["~"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ASKING = """from PIL import Image


def pictures(row):
    return [Image.open(row["picture"])] if row["picture"] else []


def question(row, lmms_eval_specific_kwargs=None):
    return row["question"]
"""


@pytest.fixture(scope="module")
def task(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of lmms-eval: a question about each picture, one without, targets that are half right."""
    folder = tmp_path_factory.mktemp("task")
    pictures = run.parents[3] / "pictures"
    rows = [{"picture": str(pictures / f"{index}.png"), "question": "What?", "answer": "?"} for index in range(COLOURS)]
    rows.append({"picture": "", "question": "Who?", "answer": "?"})
    for row, text in zip(rows[::2], answers(run, rows)[::2], strict=True):
        row["answer"] = text
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    (folder / "colours.yaml").write_text(TASK.format(rows=folder / "rows.json"))
    (folder / "asking.py").write_text(ASKING)
    return folder


def answers(run: Path, rows: list[dict[str, Any]]) -> list[str]:
    """What the run says, each asked alone."""
    generator = generator_of_run(str(run), registered_targets(folders_of(None)))
    found = []
    for row in rows:
        picture = [Medium(source=row["picture"]), Text(text="\n")] if row["picture"] else []
        turn = Turn(role="user", parts=(*picture, Text(text=row["question"])))
        [text] = generator.predict([Sample(id="", turns=(turn,))], Sampling(max_new_tokens=8))
        found.append(text.split("~")[0])
    return found


def lmms_eval(folder: Path, model_args: str) -> subprocess.CompletedProcess[str]:
    settings = {"--model": "mmexp", "--model_args": model_args, "--include_path": str(folder), "--tasks": "colours",
                "--batch_size": "5", "--output_path": str(folder / "out")}  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "lmms_eval",
        *(text for pair in settings.items() for text in pair),
        "--log_samples",
    ]
    env = {**os.environ, "PYTHONPATH": str(conf_dir().parent), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.slow
def test_a_task_of_local_rows_gets_the_answers_of_the_run(run: Path, task: Path) -> None:
    done = lmms_eval(task, f"run={run}")
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = (task / "out").rglob("*samples_colours.jsonl")
    said = {row["doc_id"]: row["filtered_resps"] for row in map(json.loads, samples.read_text().splitlines())}
    rows = [json.loads(line) for line in (task / "rows.json").read_text().splitlines()]
    alone = answers(run, rows)
    assert [said[place] for place in range(len(rows))] == alone
    assert len(set(alone)) > 3
    [results] = (task / "out").rglob("*results.json")
    right = sum(text == row["answer"] for text, row in zip(alone, rows, strict=True))
    assert json.loads(results.read_text())["results"]["colours"]["exact_match,none"] == pytest.approx(right / len(rows))


def request(messages: list[dict[str, Any]], settings: dict[str, Any], kind: str = "generate_until") -> Any:
    from lmms_eval.api.instance import Instance

    arguments = ("What?", lambda row: messages, settings, 0, "mine", "test")
    return Instance(request_type=kind, arguments=arguments, idx=0, metadata={"task": "mine", "doc_id": 0, "repeats": 1})


def said(kind: str, value: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": kind, "text" if kind == "text" else "url": value}]}


def test_what_is_not_offered_is_one_clear_mistake(run: Path) -> None:
    from mmexp.lmms.model import RunModel

    for arguments, words in (({}, "no run"), ({"run": str(run), "dtype": "int3"}, "unknown: dtype")):
        with pytest.raises(ConfigError, match=words):
            RunModel(**arguments)
    model = RunModel(run=str(run), batch_size="2", device="cuda:0", max_batch_size=None)
    model.task_dict = {"mine": {"test": [{}]}}
    with pytest.raises(DataError, match="mine/test, row 0: a part of type video"):
        model.generate_until([request([said("video", "film.mp4")], {})])
    with pytest.raises(ConfigError, match="top_k"):
        model.generate_until([request([said("text", "Who?")], {"top_k": 3})])
    with pytest.raises(ConfigError, match="likelihoods"):
        model.loglikelihood([request([], {}, "loglikelihood")])
    with pytest.raises(ConfigError, match="several rounds"):
        model.generate_until_multi_round([request([], {})])


def test_several_processes_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmexp.lmms.model import RunModel

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="several processes"):
        RunModel(run=str(run))


def test_settings_of_a_task_choose_how_tokens_are_chosen(run: Path) -> None:
    from mmexp.lmms.model import RunModel

    model = RunModel(run=str(run), seed="4")
    model.task_dict = {"mine": {"test": [{}]}}
    greedy = {"max_new_tokens": 8, "temperature": 0.9, "do_sample": False}
    sampled = {"max_new_tokens": 8, "temperature": 5.0}
    ask = [said("text", "Who?")]
    first, second, third = model.generate_until([request(ask, greedy), request(ask, sampled), request(ask, greedy)])
    assert first == third == answers(run, [{"picture": "", "question": "Who?"}])[0]
    assert second != first
    assert second == model.generate_until([request(ask, sampled)])[0]
