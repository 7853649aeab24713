"""The composition root: from a checked configuration to plan, job, run directory and figures.

Only entry points import this module; everything below it works from plain objects.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmexp.config import Checked, Invocation, check, load_run_config, redact, redact_overrides
from mmexp.contracts import IGNORE, Item
from mmexp.engine.log import console, setup_logging
from mmexp.engine.manifest import RunDir, open_run_dir, provenance, write_text
from mmexp.errors import CheckpointError, ConfigError
from mmexp.model import InputPlan, Plan
from mmexp.report import Piece, PreviewEntry, plan_table, results_table, write_report
from mmexp.tuning import LoraSettings, TrainedPart

if TYPE_CHECKING:
    from mmexp.engine import Generator, StageJob
    from mmexp.evaluation import BenchmarkConfig
    from mmexp.evaluation.runner import Results

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """A checked configuration and what follows from it."""

    checked: Checked
    overrides: Sequence[str] = ()

    @cached_property
    def plan(self) -> Plan:
        """The model before it is built."""
        parts, processor = self.checked.parts, self.checked.spine.processor
        inputs = {}
        if parts["encoder"] is not None:
            inputs["image"] = InputPlan(encoder=parts["encoder"], connector=parts["connector"])
        return Plan(
            inputs=inputs,
            llm=parts["llm"],
            template=parts["template"],
            image_fit=processor.image_fit,
            max_length_tokens=processor.max_length_tokens,
        )

    @property
    def benchmarks(self) -> dict[str, BenchmarkConfig]:
        """The benchmarks that belong to a stage of this kind."""
        kind = self.checked.spine.stage.kind
        return {name: b for name, b in self.checked.parts["evaluation"].items() if kind in b.stage_kinds}

    def open_run(self) -> RunDir:
        """The run directory with configuration, overrides and a manifest; an existing one is continued.

        Raises:
            CheckpointError: the directory belongs to another configuration, or another process works on it.
        """
        spine = self.checked.spine
        run = open_run_dir(spine.paths.outputs, spine.name, spine.stage.name, spine.run_id, spine.seed)
        run.lock()
        plain = redact({key: value for key, value in self.checked.plain.items() if key not in ("run_id", "resume")})
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        if run.config.is_file():
            _require_same(yaml.safe_load(run.config.read_text(encoding="utf-8")), plain, run)
        else:
            write_text(run.config, text)
            write_text(run.path / "overrides.txt", "\n".join(redact_overrides(list(self.overrides))) + "\n")
            facts = {"name": spine.name, "stage": spine.stage.name, "kind": spine.stage.kind, "seed": spine.seed}
            bases = {name: getattr(self.checked.parts[name], "path", None) for name in ("encoder", "llm")}
            parent = {"parent": spine.stage.init_from, "base": redact(bases)}
            run.update_manifest(status="new", recipe=spine.name, **facts, **parent, **provenance())
        return run

    def job(self, run: RunDir) -> StageJob:
        """The stage as plain objects."""
        from mmexp.engine import StageJob

        spine, parts = self.checked.spine, self.checked.parts
        stage = spine.stage
        return StageJob(
            run=run,
            label=stage.name,
            plan=self.plan,
            data=parts["data"],
            objective=parts["objective"],
            policy=stage.policy,
            init_from=finished_run(stage.init_from, "stage.init_from") if stage.init_from else None,
            lora=LoraSettings(**vars(stage.lora)),
            lr=stage.lr,
            lr_by_part=stage.lr_by_part,
            weight_decay=stage.weight_decay,
            warmup_ratio=stage.warmup_ratio,
            grad_clip=stage.grad_clip,
            batch_size=stage.batch_size,
            micro_batch_size=stage.micro_batch_size,
            epochs=stage.epochs,
            max_steps=stage.max_steps,
            optim=parts["optim"],
            trainer=parts["trainer"],
            loggers=parts["logger"],
            row=spine.processor.row,
            num_workers=spine.processor.num_workers,
            seed=spine.seed,
            check_rows=spine.processor.check_rows,
            config=redact(self.checked.plain),
            tags=[str(node.get("_target_", "")).rsplit(".", 1)[-1] for node in self._component_nodes()],
            group=spine.name,
        )

    def load_generator(self, run: RunDir) -> Generator:
        """The model of a finished run, ready to answer."""
        import torch

        from mmexp.engine import Generator, load_weights

        model = self.plan.build()
        load_weights(model.parts(), run)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return Generator(model.eval().to(device), self.plan)

    def _component_nodes(self) -> list[Mapping[str, Any]]:
        return [self.checked.plain[name] for name in ("encoder", "connector", "llm") if self.checked.plain.get(name)]


def experiment(invocation: Invocation, skip: tuple[str, ...] = ()) -> Experiment:
    """The experiment that a command line means; with `resume=DIR`, the one that run directory holds."""
    resume = invocation.cfg.get("resume")
    if resume:
        return _continued(Path(str(resume)), invocation)
    return Experiment(check(invocation.cfg, invocation.registered, skip), invocation.overrides)


def experiment_of_run(run_dir: str, registered: frozenset[str], skip: tuple[str, ...] = ()) -> Experiment:
    """The experiment of a run directory; its configuration can name registered components only."""
    return Experiment(check(load_run_config(Path(run_dir)), registered, skip))


def finished_run(path: str, where: str) -> RunDir:
    """The run directory at `path`.

    Raises:
        CheckpointError: there is none.
    """
    run = RunDir(Path(path).expanduser())
    if not run.manifest_file.is_file():
        raise CheckpointError(
            f"{path} is no run directory",
            expected="outputs/<name>/<stage>/<run_id> of a finished run",
            where=where,
            fix="`ls -d outputs/*/*/*/` shows the runs there are",
        )
    return run


def train(invocation: Invocation) -> RunDir:
    """Trains one stage, evaluates it, and writes its report: the whole of `mmexp.train`.

    Returns:
        The finished run. One that was finished before is returned at once.
    """
    setup_logging()
    started = time.monotonic()
    exp = experiment(invocation)
    _ = exp.plan.processor
    run = exp.open_run()
    if run.finished:
        console.print(f"already finished: {run.path}")
        return run
    setup_logging(run.path / "run.log")
    show_plan(exp, run)
    results = _fit_and_evaluate(exp, run)
    page = write_report(run.path)
    run.update_manifest(status="finished", wall_s=round(time.monotonic() - started, 1))
    finish(run, results, page)
    return run


def preview_items(exp: Experiment, count: int) -> tuple[list[dict[str, Any]], list[PreviewEntry]]:
    """Evenly spaced samples of the training data: as plain JSON values, and as pictures with text."""
    dataset, plan = exp.checked.parts["data"].build(), exp.plan
    lines, entries = [], []
    for index in (number * len(dataset) // count for number in range(min(count, len(dataset)))):
        item = plan.processor.encode(dataset[index])
        runs = [vars(run) for run in item.runs]
        ids, labels = item.input_ids.tolist(), item.labels.tolist()
        lines.append({"id": item.id, "input_ids": ids, "labels": labels, "media": runs})
        images = [plan.transforms[m].restore(value) for m, values in item.media.items() for value in values]
        slots = sum(run.length for run in item.runs)
        counts = f"{len(ids)} tokens, {slots} slots, {item.num_supervised} supervised"
        entries.append(PreviewEntry(id=item.id, images=images, pieces=_pieces(item, plan), counts=counts))
    return lines, entries


def _pieces(item: Item, plan: Plan) -> list[Piece]:
    """The item's tokens as text again, cut where supervision or slots begin and end."""
    slot_of = {run.start + step: (index, run) for index, run in enumerate(item.runs) for step in range(run.length)}
    keys = [
        (slot_of[at][0] if at in slot_of else None, bool(label != IGNORE))
        for at, label in enumerate(item.labels.tolist())
    ]
    pieces, ids = [], item.input_ids.tolist()
    for (run, supervised), group in groupby(range(len(ids)), key=keys.__getitem__):
        members = list(group)
        if run is not None:
            pieces.append(Piece(slot=item.runs[run].modality, length=len(members)))
        else:
            text = plan.tokenizer.decode([ids[at] for at in members], skip_special_tokens=False)
            pieces.append(Piece(text=text, supervised=supervised))
    return pieces


def show_plan(exp: Experiment, run: RunDir | None = None) -> None:
    """The plan as a table: parts, shapes, tokens, data and where it goes."""
    console.print(plan_table(plan_rows(exp, run), title=f"{exp.checked.spine.name} / {exp.checked.spine.stage.name}"))


def plan_rows(exp: Experiment, run: RunDir | None = None) -> list[dict[str, str]]:
    """What the plan table shows."""
    spine, plan = exp.checked.spine, exp.plan
    rows = []
    for modality, branch in plan.inputs.items():
        grid = " x ".join(map(str, branch.spec.grid))
        rows.append(
            {
                "part": "encoder",
                "what": _title(exp, "encoder"),
                "shape": f"{modality} to {grid} patches x {branch.spec.width}",
            }
        )
        shape = f"{branch.num_soft_tokens} soft tokens x {plan.spec.width}"
        rows.append({"part": "connector", "what": _title(exp, "connector"), "shape": shape})
    rows.append(
        {"part": "llm", "what": _title(exp, "llm"), "shape": f"{plan.spec.vocab_size} tokens x {plan.spec.width}"}
    )
    rows.append(
        {
            "part": "template",
            "what": plan.template.name,
            "shape": f"at most {plan.max_length_tokens} tokens, images {plan.image_fit}",
        }
    )
    rows.append({"part": "data", "what": _title(exp, "data"), "shape": f"batches of {spine.stage.batch_size}"})
    rows.append({"part": "start", "what": spine.stage.init_from or "base weights", "shape": ""})
    if run is not None:
        rows.append({"part": "run", "what": str(run.path), "shape": ""})
    return rows


def show_trained(table: Sequence[TrainedPart]) -> None:
    """What trains, with how many parameters and which learning rate."""
    rows = [
        {
            "part": part.name,
            "policy": part.policy,
            "parameters": f"{part.num_parameters:,}",
            "trained": f"{part.num_trained:,}",
            "learning rate": f"{part.lr:g}" if part.num_trained else "-",
        }
        for part in table
    ]
    console.print(plan_table(rows, title="what trains"))


def finish(run: RunDir, results: Results, page: Path) -> None:
    """The last lines of a run: figures, report, and the command to talk to it."""
    if results:
        console.print(results_table(results))
    manifest = run.manifest()
    minutes = manifest.get("wall_s", 0) / 60
    console.print(f"{minutes:.1f} minutes, peak memory {manifest.get('peak_memory_mb', 0):.0f} MB")
    console.print(f"report  {page}", soft_wrap=True)
    console.print(f"chat    python -m mmexp.chat run={run.path}{_example_image(run)}", soft_wrap=True)


def _fit_and_evaluate(exp: Experiment, run: RunDir) -> Results:
    from mmexp.engine import Generator, fit
    from mmexp.engine.job import peak_memory_mb
    from mmexp.engine.predict import evaluate_run

    module = fit(exp.job(run), show_trained)
    started = time.monotonic()
    results = evaluate_run(Generator(module.model, exp.plan), exp.benchmarks, run)
    run.update_manifest(eval_s=round(time.monotonic() - started, 1), peak_memory_mb=peak_memory_mb())
    return results


def _continued(folder: Path, invocation: Invocation) -> Experiment:
    others = [o for o in invocation.overrides if not o.lstrip("+").startswith("resume=")]
    if others:
        raise ConfigError(
            f"resume={folder} together with {' '.join(others)}",
            expected="resume= alone: a run continues with its own configuration",
            where="resume",
            fix="to go on from its weights with other settings, use stage.init_from=<run>",
        )
    plain = load_run_config(folder)
    outputs, run_id = str(folder.parents[2]), folder.name
    plain["paths"] = {**plain.get("paths", {}), "outputs": outputs}
    return Experiment(check({**plain, "run_id": run_id}, invocation.registered))


def _require_same(saved: Any, plain: Mapping[str, Any], run: RunDir) -> None:
    """A run directory belongs to one configuration; where files lie may differ."""
    ignored = ("paths", "logger", "trainer")
    different = [
        key for key in sorted(set(saved) | set(plain)) if key not in ignored and saved.get(key) != plain.get(key)
    ]
    if different:
        raise CheckpointError(
            f"the run there was made with other settings of {', '.join(different)}",
            where=str(run.path),
            fix="another run_id for other settings, or resume=<that run> to continue it with its own",
        )


def _title(exp: Experiment, name: str) -> str:
    node = exp.checked.plain[name]
    return str(node.get("path") or str(node.get("_target_", "")).rsplit(".", 1)[-1])


def _example_image(run: RunDir) -> str:
    """` image=FILE` for a picture the run was evaluated on."""
    import json

    for file in sorted((run.path / "predictions").glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            image = json.loads(lines.readline() or "{}").get("image")
        if image:
            return f" image={image}"
    return ""
