"""The commands as a user types them, on tiny parts: what they print, write and answer to mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from mmexp.engine.manifest import open_run_dir
from mmexp.errors import DataError

TINY = ["encoder=tiny", "llm=tiny", "logger=none", "evaluation=none", "data=llava_json", "data.path=rows.json"]


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *args],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def command(*args: str, cwd: Path) -> tuple[int, str, str]:
    process = start(*args, cwd=cwd)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 16 one-picture rows."""
    rows = []
    for index in range(16):
        Image.new("RGB", (40, 30), (index * 15, 90, 90)).save(tmp_path / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"number {index}"}]
        rows.append({"id": f"row{index}", "image": f"{index}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def test_doctor_plans_llava15_7b_without_weights(tmp_path: Path) -> None:
    code, out, err = command("mmexp.doctor", "recipe=llava15", cwd=tmp_path)
    assert code == 0, err
    for fact in ("24 x 24 patches", "576 soft tokens", "20,979,712", "6,738,415,616", "</s> (2)", "outputs/llava15/"):
        assert fact in out, fact
    assert not any(tmp_path.iterdir()), "a plan writes nothing"


@pytest.mark.slow
def test_doctor_sizes_the_job_and_proposes_what_fits(folder: Path) -> None:
    again = "trainer.gradient_checkpointing=[llm]"
    code, out, err = command("mmexp.doctor", *TINY, "gpu=rtx3090", "trainer.max_steps=10", again, cwd=folder)
    assert code == 0, err
    for fact in ("memory of each device", "16 of the 16 rows, tokenised", "samples of the stage: 80", "fits rtx3090",
                 "llm computed again"):  # fmt: skip
        assert fact in out, fact
    code, out, err = command("mmexp.doctor", *TINY, "gpu=a100", cwd=folder)
    assert code == 2
    assert "try: gpu=a100_" in err
    assert not out


@pytest.mark.slow
def test_preview_writes_what_other_programs_can_check(folder: Path) -> None:
    code, out, err = command("mmexp.preview", *TINY[:2], *TINY[4:], "n=3", "out=p.jsonl", cwd=folder)
    assert code == 0, err
    assert "[image x4]" in out
    assert (folder / "p.png").is_file()
    lines = [json.loads(line) for line in (folder / "p.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line.keys() == {"id", "input_ids", "labels", "media"}
        assert len(line["input_ids"]) == len(line["labels"])
        assert [(medium["modality"], medium["length"]) for medium in line["media"]] == [("image", 4)]
        supervised = [label for label in line["labels"] if label != -100]
        assert len(supervised) >= len(" number 1") + 1
        assert supervised[-1] == 2


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_continues(folder: Path) -> None:
    settings = ["run_id=one", "trainer.max_steps=4000", "trainer.log_every_n_steps=1", "stage.batch_size=2"]
    process = start("mmexp.train", *TINY, *settings, "stage.micro_batch_size=2", cwd=folder)
    run = folder / "outputs" / "default" / "instruct" / "one"
    deadline = time.monotonic() + 150
    while not (run / "metrics.jsonl").is_file() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "everything is saved" in err
    assert "Traceback" not in err
    stopped = json.loads((run / "manifest.json").read_text())
    assert stopped["status"] == "interrupted"
    again = start("mmexp.train", f"resume={run}", cwd=folder)
    while json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] < stopped["step"] + 3:
        assert again.poll() is None, again.communicate()
        assert time.monotonic() < deadline + 150
        time.sleep(0.1)
    again.send_signal(signal.SIGTERM)
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 143
    assert f"continuing from step_{stopped['step']:08d}.ckpt" in out
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(folder: Path) -> None:
    settings = [*TINY, "run_id=one", "trainer.max_steps=1"]
    assert command("mmexp.train", *settings, cwd=folder)[0] == 0
    code, out, _ = command("mmexp.train", *settings, cwd=folder)
    assert code == 0
    assert "already finished" in out
    code, _, err = command("mmexp.train", *settings, "stage.lr=0.5", cwd=folder)
    assert code == 2
    assert "other settings of stage" in err


@pytest.mark.slow
def test_a_run_that_failed_before_its_first_step_gives_its_run_id_back(folder: Path) -> None:
    (folder / "broken.json").write_text('[{"id": "a", "image": "gone.png", "conversations": []}]')
    settings = [*TINY[:-1], "run_id=one", "trainer.max_steps=1"]
    assert command("mmexp.train", *settings, "data.path=broken.json", cwd=folder)[0] == 2
    code, _, err = command("mmexp.train", *settings, "data.path=rows.json", "stage.lr=0.5", cwd=folder)
    assert code == 0, err
    run = folder / "outputs/default/instruct/one"
    assert "lr: 0.5" in (run / "config.yaml").read_text()
    assert "stage.lr=0.5" in (run / "overrides.txt").read_text()
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_mistake_in_the_second_stage_alone_does_not_cost_the_first(folder: Path) -> None:
    (folder / "broken.json").write_text('[{"id": "a", "image": "gone.png", "conversations": []}]')
    (folder / "my_conf" / "stage").mkdir(parents=True)
    second = "# @package _global_\ndefaults:\n  - /stage/instruct\nstage: {{name: second}}\ndata: {{path: {}}}\n"
    for name in ("broken.json", "rows.json"):
        (folder / "my_conf" / "stage" / "second.yaml").write_text(second.format(name))
        settings = ["--config-dir", "my_conf", *TINY[:-1], "trainer.max_steps=1", "run_id=tour"]
        first = folder / "my_conf" / "stage" / "first.yaml"
        first.write_text(second.format("rows.json").replace("instruct", "align").replace("second", "first"))
        code, out, err = command("mmexp.pipeline", *settings, "stages=[first,second]", cwd=folder)
        assert code == (2 if name == "broken.json" else 0), err
    assert "already finished: outputs/default/first/tour" in out
    assert (folder / "outputs/default/second/tour/report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["mmexp.chat", "run=nowhere"], ["nowhere is no run directory", "try:"]),
        (["mmexp.evaluate", "run=nowhere"], ["nowhere is no run directory", "try:"]),
        (["mmexp.train", *TINY, "stage.init_from=nowhere"], ["stage.init_from", "no run directory"]),
        (["mmexp.train", *TINY, "llm=smollm2_135m", "llm.path=./gone"], ["no such folder", "./gone"]),
        (["mmexp.train", *TINY, "processor.max_length_tokens=4"], ["processor.max_length_tokens", "soft tokens"]),
        (["mmexp.train", *TINY, "connector=average_pool", "connector.factor=3"], ["connector.factor", "2 x 2"]),
        (["mmexp.train", *TINY, "stage.policy.connector=froze"], ["stage.policy.connector", "frozen"]),
        (["mmexp.train", *TINY[:-1], "data.path=row.json"], ["row.json", "rows.json"]),
        (["mmexp.pipeline", "stages=[]"], ["no stages", "recipe=llava15"]),
        (["mmexp.preview", *TINY[:2], *TINY[4:], "n=0"], ["at least 1"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value[0].startswith("mmexp") else "",
)
def test_mistakes_get_one_clear_answer(folder: Path, args: list[str], words: list[str]) -> None:
    code, _, err = command(*args, cwd=folder)
    assert code == 2, err
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_a_mistake_in_the_last_stage_is_said_before_the_first_one_starts(folder: Path) -> None:
    (folder / "my_conf" / "stage").mkdir(parents=True)
    wrong = "# @package _global_\ndefaults:\n  - /stage/instruct\nstage: {name: wrong, weight_decay: much}\n"
    (folder / "my_conf" / "stage" / "wrong.yaml").write_text(wrong)
    code, _, err = command("mmexp.pipeline", "--config-dir", "my_conf", *TINY, "stages=[align,wrong]", cwd=folder)
    assert code == 2, err
    for word in ("stage wrong cannot run", "stage.weight_decay", "much"):
        assert word in err
    assert not (folder / "outputs").exists()


def test_a_full_disk_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10 * 2**20})())
    with pytest.raises(DataError, match=r"10 MB free.*(\n.*)*paths\.outputs"):
        open_run_dir(str(tmp_path), "name", "stage", None, 0)


def test_a_sigterm_is_not_lost_when_the_stage_finishes_all_the_same() -> None:
    from mmexp.pipeline import _in_fresh_process

    handled = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {signum: signal.getsignal(signum) for signum in handled}
    child = (
        "import os, signal; signal.signal(15, signal.SIG_IGN); os.kill(os.getppid(), 15); import time; time.sleep(.3)"
    )
    try:
        assert _in_fresh_process([sys.executable, "-c", child]) == 143
        assert _in_fresh_process([sys.executable, "-c", ""]) == 0
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@pytest.mark.slow
def test_a_run_becomes_a_folder_of_transformers(folder: Path) -> None:
    settings = [*TINY, "run_id=one", "trainer.max_steps=1"]
    assert command("mmexp.train", *settings, cwd=folder)[0] == 0
    run = "run=outputs/default/instruct/one"
    code, out, err = command("mmexp.export", run, "out=exported", "image=3.png", cwd=folder)
    assert code == 0, err
    assert "greedy answers are equal" in out
    assert (folder / "exported" / "model.safetensors").is_file()
    code, _, err = command("mmexp.export", run, "out=exported", cwd=folder)
    assert code == 2
    assert "new or empty folder" in err
    code, _, err = command("mmexp.export", run, "out=other", "form=adapter", cwd=folder)
    assert code == 2
    assert "form=merged" in err
