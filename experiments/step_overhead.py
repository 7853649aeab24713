"""What the Trainer costs a step: `fit` with default logging against a bare PyTorch loop that does the same work.

    python experiments/step_overhead.py [STEPS] [ROUNDS]

Both run the same model, batches, loss, clipping, optimizer and schedule in one process, in turns; one thread and
process CPU time, so that other work on the machine counts little. Losses are compared first.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

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


def bare(job: StageJob, steps: int) -> tuple[float, float]:
    """CPU seconds a step and the last loss of a plain loop."""
    torch.manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model = job.plan.build()
        objective = job.objective.build(job.plan)
    apply_policy(model, POLICY, job.lora)
    parts = model.parts()
    groups = parameter_groups(parts, job.lr, {}, 0.0)
    optimizer, schedule = job.optim.build(groups, steps, 0.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    data = MultimodalDataModule(
        dataset=job.data.build(),
        processor=job.plan.processor,
        collator=Collator(pad_id=job.plan.tokenizer.pad_id),
        micro_batch_size=1,
        num_micro_batches=steps,
        seed=0,
    )
    batches = iter(data.train_dataloader())
    began, loss = 0.0, torch.zeros(())
    for step in range(steps):
        if step == WARM_UP:
            began = time.process_time()
        seed_step(mix(0, step), torch.device("cpu"))
        losses = objective(model, next(batches))
        loss = losses.sums["lm"] / losses.counts["lm"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
        optimizer.step()
        schedule.step()
    return (time.process_time() - began) / (steps - WARM_UP), loss.item()


def trained(job: StageJob, steps: int) -> tuple[float, float]:
    """CPU seconds a step and the last loss under the Trainer."""
    marks: list[float] = []
    make = fitting._callbacks

    class Clock(Callback):
        """Costs what any callback costs, and counts as overhead."""

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if trainer.global_step in (WARM_UP, trainer.max_steps):
                marks.append(time.process_time())
                self.last = float(pl_module.latest.sums["lm"].detach()) / pl_module.latest.counts["lm"]

    clock = Clock()
    fitting._callbacks = lambda *args: [clock, *make(*args)]
    try:
        fit(job, lambda table: None)
    finally:
        fitting._callbacks = make
    return (marks[-1] - marks[0]) / (steps - WARM_UP), clock.last


WARM_UP = 50


def main(steps: int = 400, rounds: int = 5) -> None:
    """Prints the extra milliseconds of every round, and their median."""
    torch.set_num_threads(1)
    extra = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            job = make_job(Path(name), steps)
            figures = {each: each(job, steps) for each in ((bare, trained) if number % 2 else (trained, bare))}
        (loop, loss), (fitted, same) = figures[bare], figures[trained]
        assert abs(loss - same) < 1e-5, f"not the same work: {loss} and {same}"
        extra.append((fitted - loop) * 1e3)
        print(f"bare {loop * 1e3:.2f} ms, Trainer {fitted * 1e3:.2f} ms, overhead {extra[-1]:.2f} ms")
    print(f"overhead a step: median {statistics.median(extra):.2f} ms, {min(extra):.2f} to {max(extra):.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
