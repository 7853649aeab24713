"""How often does a run that is killed or stopped come out as if nothing had been? Writes experiments/faults.md.

`python experiments/faults.py` takes some 20 minutes on two idle cores; `--kills 4 --writes 5` is a look.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

MIXTURE = """_target_: mmexp.data.MixtureConfig
mixing: sqrt
parts:
  rows: {data: {_target_: mmexp.data.LlavaJsonConfig, path: rows.json}, weight: 2}
  again: {data: {_target_: mmexp.data.LlavaJsonConfig, path: rows.json}, subset: "random:50%"}
"""
PAGE = """# Kills
Written by `python experiments/faults.py --kills {kills} --writes {writes} --seed {seed}` in {minutes:.0f} minutes:
real processes on tiny parts, {steps} steps, killed with SIGKILL and started again with another number of workers.
Equal means every loss, every sample at its place, and every bit of the final weights, as in a run that was never
killed.

| run | kills in a chain | outcome |
|---|---|---|
{rows}

Kills after a checkpoint had begun to be written: {writes}, of them {hit} before it had its name.
Runs left without a good checkpoint: {torn}.
"""
NUM_STEPS = 60
SETTINGS = {
    "accumulation 1": ("stage.micro_batch_size=4",),
    "accumulation 2, mixture": ("stage.micro_batch_size=2", "data=mixed", "~data.path", "--config-dir", "conf"),
    "accumulation 3, packed": ("stage.micro_batch_size=1", "stage.batch_size=3", "processor.row=packed",
                               "processor.max_length_tokens=700"),
    "accumulation 4": ("stage.micro_batch_size=1",),
}  # fmt: skip


def chains(folder: Path, kills: int, rng: random.Random) -> list[str]:
    """Chains of killed runs against a run that was never killed, one chain for each setting."""
    from tests.faults.runs import Run, same_weights

    lines = []
    for number, (name, settings) in enumerate(SETTINGS.items()):
        steps = (
            "stage.batch_size=4",
            f"trainer.max_steps={NUM_STEPS}",
            "trainer.checkpoint_every_n_steps=7",
            *settings,
        )
        whole = Run(folder, f"whole{number}", *steps)
        whole.finish()
        run, done = Run(folder, f"killed{number}", *steps), 0
        while done < -(-kills // len(SETTINGS)):
            run.start(f"processor.num_workers={rng.choice([0, 1, 2])}")
            reached = len(run.losses())
            run.wait_for_step(
                min(reached + rng.randint(1, 14), NUM_STEPS - 4)
            )  # also at the edges of windows and epochs
            time.sleep(rng.random() * 0.05)
            run.kill()
            done += 1
        run.finish(f"processor.num_workers={rng.choice([0, 1, 2])}")
        equal = run.losses() == whole.losses() and run.ids() == whole.ids() and same_weights(run, whole)
        lines.append(f"| {name} | {done} | {'equal' if equal else 'DIFFERENT'} |")
        print(lines[-1], flush=True)
    return lines


def writes(folder: Path, kills: int) -> tuple[int, int]:
    """Kills while a checkpoint is being written: how many were hit in the write, and how many left no good one."""
    from mmexp.engine.checkpoint import newest
    from tests.faults.runs import Run

    wide = ("llm.width=256", "stage.batch_size=2", "stage.micro_batch_size=2", "trainer.max_steps=100000")
    run = Run(folder, "written", *wide, "trainer.checkpoint_every_n_steps=1")
    hit = torn = 0
    for _ in range(kills):
        before = set(run.checkpoints())
        run.start()
        run.wait_for(lambda before=before: bool(set(run.checkpoints()) - before))
        run.wait_for(lambda: any((run.path / "checkpoints").glob(".step_*.tmp")))
        run.kill()
        hit += any((run.path / "checkpoints").glob(".step_*.tmp"))
        torn += newest(run.path / "checkpoints") is None
    return hit, torn


def main() -> None:
    from tests.faults.runs import write_rows

    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--writes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "faults.md")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder)
        (folder / "conf" / "data").mkdir(parents=True)
        (folder / "conf" / "data" / "mixed.yaml").write_text(MIXTURE)
        lines = chains(folder, args.kills, random.Random(args.seed))
        hit, torn = writes(folder, args.writes)
    minutes = (time.monotonic() - started) / 60
    args.out.write_text(
        PAGE.format(**vars(args), minutes=minutes, steps=NUM_STEPS, rows="\n".join(lines), hit=hit, torn=torn)
    )


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
