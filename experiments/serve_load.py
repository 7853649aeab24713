"""Does the server lose, mix up or change an answer under load, and does it grow?

    python experiments/serve_load.py RUN [QUESTIONS.json] [NUM]

RUN is a finished run; QUESTIONS a LLaVA JSON file (the questions about boxes of
the shapes world as a rule, for their answers differ most). Every
question is answered alone, in this process, then all of them at concurrency 16 by `mmexp.serve` as a process of its
own, half of them streamed. Writes experiments/serve_load.md.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mmexp.assemble import experiment_of_run, finished_run
from mmexp.config import conf_dir, registered_targets
from mmexp.llm import Sampling
from tests.serve.client import post, question, sample, serving, stream, text_of

CONCURRENCY, MAX_TOKENS = 16, 12
SKIP = ("data", "optim", "trainer", "logger", "evaluation")


def read_questions(file: Path, number: int) -> list[tuple[str, Path]]:
    """The first different pairs of question and picture."""
    found: dict[tuple[str, Path], None] = {}
    for row in json.loads(file.read_text(encoding="utf-8")):
        for turn in row["conversations"][::2]:
            found[turn["value"].replace("<image>", "").strip(), file.parent / row["image"]] = None
    return list(found)[:number]


def alone(run: str, asked: list[tuple[str, Path]]) -> tuple[list[str], float]:
    """One answer each, one at a time, and the seconds of all."""
    exp = experiment_of_run(run, registered_targets([conf_dir()]), skip=SKIP)
    generator = exp.load_generator(finished_run(run, "run"))
    sampling, start = Sampling(max_new_tokens=MAX_TOKENS), time.monotonic()
    answers = [generator.predict([sample(text, picture)], sampling)[0] for text, picture in asked]
    return answers, time.monotonic() - start


def resident_mb(process_id: int) -> float:
    """Memory of a process."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def under_load(run: str, asked: list[tuple[str, Path]], log: Path) -> tuple[list[str | None], float, list[float]]:
    """The answers (None for a failed request), seconds, and memory after each tenth of the requests."""
    memory: list[float] = []
    with serving(run, log, "model=load", "max_batch=8") as (process, port), ThreadPoolExecutor(CONCURRENCY) as pool:

        def ask(number: int) -> str | None:
            text, picture = asked[number]
            body = {"model": "load", "messages": question(text, picture), "max_tokens": MAX_TOKENS}
            if number % 2:
                answer: str | None = text_of(stream(port, body))
            else:
                status, reply = post(port, body)
                answer = reply["choices"][0]["message"]["content"] if status == 200 else None
            if number % max(1, len(asked) // 10) == 0:
                memory.append(resident_mb(process.pid))
            return answer

        start = time.monotonic()
        answers = list(pool.map(ask, range(len(asked))))
        return answers, time.monotonic() - start, memory


def main(run: str, file: str = "outputs/cache/shapes/task_boxes.json", number: str = "1000") -> None:
    asked = read_questions(Path(file), int(number))
    expected, alone_s = alone(run, asked)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        found, load_s, memory = under_load(run, asked, log)
        ending = log.read_text().split("ending: ")[1].split("\n")[0].strip()
    lost = sum(answer is None for answer in found)
    other = sum(a is not None and a != b for a, b in zip(found, expected, strict=True))
    rows = [
        ("requests, each another pair of question and picture", f"{len(asked)}", ""),
        ("different answers among them", f"{len(set(expected))}", ""),
        ("lost", f"{lost}", "0"),
        ("other than alone", f"{other}", "0"),
        ("server", ending, ""),
        ("memory at each tenth of the requests, MB", ", ".join(f"{size:.0f}" for size in memory), "flat"),
        ("one by one, in one process without a server", f"{alone_s:.1f} s", ""),
        (f"through the server at concurrency {CONCURRENCY}", f"{load_s:.1f} s", ""),
    ]
    table = "\n".join(f"| {what} | {measured} | {target} |" for what, measured, target in rows)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    page = f"""# Does the server keep its answers under load?
Made by `python experiments/serve_load.py RUN`, on the laptop twin of LLaVA-1.5 in float32 on the CPU ({threads} thread
for the arithmetic of each process); half of the requests are streamed.

| what | measured | target |
|---|---|---|
{table}
"""
    Path(__file__).with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    if lost or other:
        raise SystemExit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
