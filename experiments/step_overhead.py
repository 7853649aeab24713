"""What the Trainer costs a step: `fit` with default logging against a bare PyTorch loop that does the same work.

    python experiments/step_overhead.py [STEPS]

Both run the same model, batches, loss, clipping, optimizer and schedule in one process, in turns of ten steps, of which
the Trainer logs one; one thread and process CPU time. So other work on the machine meets both alike. Losses are
compared at every turn.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from PIL import Image

from mmexp.connector import MlpConfig
from mmexp.data import Collator, LlavaJsonConfig, MultimodalDataModule
from mmexp.encoder import TinyVisionConfig
from mmexp.engine import AdamWCosineConfig, RunDir, StageJob, TrainerConfig, fit, fitting
from mmexp.engine.seeding import mix, seed_step
from mmexp.llm import TinyLlmConfig
from mmexp.model import InputPlan, Plan
from mmexp.objective import NextTokenConfig
from mmexp.prompt import ChatTemplate
from mmexp.tuning import LoraSettings, apply_policy, parameter_groups

TURN, NUM_WARM_UP = 10, 5
"""Steps of a turn, as many as the default logs once in, and turns that do not count."""
POLICY = {"encoder": "frozen", "connector": "full", "llm": "full"}


def make_job(folder: Path, steps: int) -> StageJob:
    """A stage on the tiny parts with 32 one-picture rows."""
    rows = []
    for index in range(32):
        Image.new("RGB", (30, 30), (index * 7, 90, 90)).save(folder / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"number {index}"}]
        rows.append({"id": str(index), "image": f"{index}.png", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    run = RunDir(Path(tempfile.mkdtemp(dir=folder)))
    for part in (run.checkpoints, run.weights):
        part.mkdir()
    plan = Plan(
        inputs={"image": InputPlan(encoder=TinyVisionConfig(), connector=MlpConfig())},
        llm=TinyLlmConfig(),
        template=ChatTemplate(name="short", media="first_if_single"),
        max_length_tokens=512,
    )
    return StageJob(
        run=run,
        label="overhead",
        plan=plan,
        data=LlavaJsonConfig(path=str(folder / "rows.json")),
        objective=NextTokenConfig(),
        policy=POLICY,
        init_from=(),
        lora=LoraSettings(),
        lr=1e-3,
        lr_by_part={},
        weight_decay=0.0,
        warmup_ratio=0.0,
        grad_clip=1.0,
        batch_size=1,
        micro_batch_size=1,
        epochs=1,
        max_steps=steps,
        optim=AdamWCosineConfig(),
        trainer=TrainerConfig(accelerator="cpu", checkpoint_every_n_steps=10**9),
        row="flat",
        num_workers=0,
        seed=0,
        check_rows=10,
    )


def bare(job: StageJob, steps: int) -> Iterator[float]:
    """A plain loop that gives its last loss after every turn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model = job.plan.build()
        objective = job.objective.build(job.plan)
    apply_policy(model, POLICY, job.lora)
    optimizer, schedule = job.optim.build(parameter_groups(model.parts(), job.lr, {}, 0.0), steps, 0.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    data = MultimodalDataModule(
        dataset=job.data.build(),
        processor=job.plan.processor,
        collator=Collator(pad_id=job.plan.tokenizer.pad_id),
        micro_batch_size=1,
        num_micro_batches=steps,
        seed=0,
    )
    for step, batch in enumerate(data.train_dataloader()):
        seed_step(mix(0, step), torch.device("cpu"))
        losses = objective(model, batch)
        loss = losses.sums["lm"] / losses.counts["lm"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
        optimizer.step()
        schedule.step()
        if step % TURN == TURN - 1:
            yield loss.item()


class Turns(Callback):
    """Lets the plain loop go on after every turn of the Trainer. What any callback costs counts as overhead.

    Args:
        loop: The other loop.
    """

    def __init__(self, loop: Iterator[float]) -> None:
        self.loop, self.seconds = loop, {"bare": [], "Trainer": []}
        self._since = time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % TURN == 0:
            began = time.process_time()
            self.seconds["Trainer"].append(began - self._since)
            loss = next(self.loop)
            self.seconds["bare"].append(time.process_time() - began)
            same = pl_module.latest.sums["lm"].item() / pl_module.latest.counts["lm"]
            assert abs(loss - same) < 1e-5, f"not the same work at step {trainer.global_step}: {loss} and {same}"
            self._since = time.process_time()


def main(steps: int = 1500) -> None:
    """Prints milliseconds a step, and what the Trainer adds: median and quartiles over turns."""
    torch.set_num_threads(1)
    make = fitting._callbacks
    with tempfile.TemporaryDirectory() as name:
        job = make_job(Path(name), steps)
        turns = Turns(bare(job, steps))
        fitting._callbacks = lambda *args: [turns, *make(*args)]
        fit(job, lambda table: None)
    found = {name: [1e3 * each / TURN for each in values[NUM_WARM_UP:]] for name, values in turns.seconds.items()}
    extra = [whole - loop for loop, whole in zip(found["bare"], found["Trainer"], strict=True)]
    for name, values in (*found.items(), ("overhead", extra)):
        low, middle, high = statistics.quantiles(values, n=4)
        print(
            f"{name}: {middle:.2f} ms a step in the median of {len(values)} turns, quartiles {low:.2f} and {high:.2f}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
