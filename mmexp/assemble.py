"""The composition root: from a checked configuration to plan, job and run directory.

Only entry points import this module; everything below it works from plain objects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmexp.config import Checked, Invocation, check, load_run_config, redact, redact_overrides
from mmexp.config.spine import ProcessorConfig
from mmexp.data.sharing import require_shareable
from mmexp.engine.manifest import RunDir, open_run_dir, provenance
from mmexp.engine.ranks import RUN_ID, is_main, shared_run_id
from mmexp.errors import CheckpointError, ConfigError
from mmexp.model import InputPlan, Plan, PromptPlan
from mmexp.prompt import AnyRes, DynamicTiles
from mmexp.tuning import LoraSettings
from mmexp.whole import write_text

if TYPE_CHECKING:
    from torch import nn

    from mmexp.engine import Generator, StageJob, TrainerConfig
    from mmexp.evaluation import BenchmarkConfig
    from mmexp.model import MultimodalModel


@dataclass(frozen=True)
class Experiment:
    """A checked configuration and what follows from it."""

    checked: Checked
    overrides: Sequence[str] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    """What was taken of each group; empty where a run directory is the source, whose manifest has them."""

    @cached_property
    def plan(self) -> Plan:
        """The model before it is built."""
        return Plan(**self._plan_fields())

    @cached_property
    def prompt(self) -> PromptPlan:
        """What samples become. Where `llm.tokenizer` is given, the LLM itself may be missing and is not looked at."""
        alone = getattr(self.checked.parts["llm"], "tokenizer", None) is not None
        return PromptPlan(**self._plan_fields()) if alone else self.plan

    @property
    def benchmarks(self) -> dict[str, BenchmarkConfig]:
        """The benchmarks that belong to a stage of this kind, and whose predictor its model has."""
        kind, objective = self.checked.spine.stage.kind, self.checked.parts.get("objective")
        has = {"embed"} if getattr(objective, "embeds", False) else set[str]()
        has |= {"generate", "score"} if self.plan.spec.width else set()
        benchmarks = self.checked.parts["evaluation"].items()
        return {name: b for name, b in benchmarks if kind in b.stage_kinds and b.needs in has}

    def require_fit(self) -> None:
        """Looks at tokenizer, template and objective before anything is written or a weight is read.

        Raises:
            ConfigError: one of them does not fit the model.
        """
        import torch

        from mmexp.inspection import require_visible

        _ = self.plan.processor
        if self.checked.parts["trainer"].evaluate_attention:
            require_visible(self.plan, where="")
        if self.checked.spine.processor.row == "shared":
            require_shareable(self.plan.spec, self.checked.parts["objective"])
        with torch.device("meta"):
            self.checked.parts["objective"].build(self.plan).requires(self.plan)

    def open_run(self) -> RunDir:
        """The run directory with configuration, overrides and a manifest; an existing one is continued, or taken over
        where nothing was trained in it yet.

        Raises:
            CheckpointError: the directory belongs to another configuration, or another process works on it.
        """
        spine = self.checked.spine
        run_id = spine.run_id or shared_run_id(self.overrides)
        run = open_run_dir(spine.paths.outputs, spine.name, spine.stage.name, run_id, spine.seed)
        if not is_main():
            return run
        os.environ[RUN_ID] = run.path.name  # for the processes that this one may start
        run.lock()
        own = ("run_id", "resume", "inexact_resume", "sweep")
        plain = redact({key: value for key, value in self.checked.plain.items() if key not in own})
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        if run.config.is_file() and not run.is_blank:
            saved = yaml.safe_load(run.config.read_text(encoding="utf-8"))
            _require_same(saved, plain, run, spine.inexact_resume)
        else:
            write_text(run.config, text)
            write_text(run.path / "overrides.txt", "\n".join(redact_overrides(list(self.overrides))) + "\n")
            facts = {"name": spine.name, "stage": spine.stage.name, "kind": spine.stage.kind, "seed": spine.seed}
            bases = {name: getattr(self.checked.parts[name], "path", None) for name in ("encoder", "llm")}
            parent = {"parent": spine.stage.init_from, "base": redact(bases)}
            run.update_manifest(
                status="new", recipe=spine.name, choices=dict(self.choices), **facts, **parent, **provenance()
            )
        return run

    def job(self, run: RunDir) -> StageJob:
        """The stage as plain objects."""
        from mmexp.engine import StageJob
        from mmexp.inspection import draw_attention

        spine, parts = self.checked.spine, self.checked.parts
        stage = spine.stage
        return StageJob(
            run=run,
            label=stage.name,
            plan=self.plan,
            data=parts["data"],
            objective=parts["objective"],
            policy=stage.policy,
            init_from=starts(stage.init_from),
            lora=LoraSettings(**vars(stage.lora)),
            live_dropout=stage.live_dropout,
            new_tokens=stage.new_tokens,
            allow_random_frozen=stage.allow_random_frozen,
            lr=stage.lr,
            lr_by_part=stage.lr_by_part,
            layer_decay=stage.layer_decay,
            weight_decay=stage.weight_decay,
            warmup_ratio=stage.warmup_ratio,
            grad_clip=stage.grad_clip,
            batch_size=stage.batch_size,
            micro_batch_size=stage.micro_batch_size,
            epochs=stage.epochs,
            max_steps=stage.max_steps,
            optim=parts["optim"],
            trainer=parts["trainer"],
            draw=draw_attention if parts["trainer"].evaluate_attention else None,
            benchmarks=self.benchmarks if parts["trainer"].evaluate_every_n_steps else {},
            row=spine.processor.row,
            num_workers=num_workers(spine.processor.num_workers, parts["trainer"]),
            seed=spine.seed,
            check_rows=spine.processor.check_rows,
            bad_media_cap=spine.processor.bad_media_cap,
            order=spine.processor.order,
            shuffle_window=spine.processor.shuffle_window,
            packing_window=spine.processor.packing_window,
            max_shared=spine.processor.max_shared,
            cache=Path(spine.paths.cache),
            feature_cache_gb=spine.processor.feature_cache_gb if spine.processor.feature_cache != "none" else None,
            log_ids=spine.processor.log_ids,
            worker_timeout_s=spine.processor.worker_timeout_s,
            inexact=spine.inexact_resume,
        )

    def load_model(self, run: RunDir, heads: Mapping[str, nn.Module] | None = None) -> MultimodalModel:
        """The model of a finished run, in eval mode on the CPU; `heads` are further parts that get their weights."""
        from mmexp.engine import load_weights

        model = self.plan.build()
        load_weights(model.parts() | dict(heads or {}), run)
        return model.eval()

    def build_heads(self) -> nn.Module | None:
        """The objective, with untrained heads, where it compares images with texts."""
        config: Any = self.checked.parts.get("objective")
        return config.build(self.plan) if getattr(config, "embeds", False) else None

    def load_generator(self, run: RunDir) -> Generator:
        """The model of a finished run, ready to answer."""
        objective = self.build_heads()
        return self.generator(self.load_model(run, {} if objective is None else {"objective": objective}), objective)

    def generator(self, model: MultimodalModel, objective: nn.Module | None) -> Generator:
        """What answers with a model, on a GPU where there is one."""
        import torch

        from mmexp.engine import Generator

        return Generator(model.to("cuda" if torch.cuda.is_available() else "cpu"), self.plan, objective)

    def _plan_fields(self) -> dict[str, Any]:
        parts, processor = self.checked.parts, self.checked.spine.processor
        inputs = {}
        if parts["encoder"] is not None:
            inputs["image"] = InputPlan(encoder=parts["encoder"], connector=parts["connector"])
        return {
            "inputs": inputs,
            "llm": parts["llm"],
            "template": parts["template"],
            **_image_rule(processor),
            "box_frame": processor.box_frame,
            "exact_pixels": processor.exact_pixels,
            "backdrop": processor.backdrop,
            "max_length_tokens": processor.max_length_tokens,
        }


def experiment(invocation: Invocation, skip: tuple[str, ...] = ()) -> Experiment:
    """The experiment that a command line means; with `resume=DIR`, the one that run directory holds."""
    resume = invocation.cfg.get("resume")
    if resume:
        return _continued(Path(str(resume)), invocation)
    return Experiment(check(invocation.cfg, invocation.registered, skip), invocation.overrides, invocation.choices)


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


def starts(paths: str | Sequence[str] | None) -> tuple[RunDir | Path, ...]:
    """Run directories and checkpoints of other programs; CheckpointError when a path is neither."""
    from mmexp.hf import is_checkpoint

    def start(text: str) -> RunDir | Path:
        path = Path(text).expanduser()
        foreign = not RunDir(path).manifest_file.is_file() and is_checkpoint(path)
        return path if foreign else finished_run(text, "stage.init_from")

    return tuple(map(start, [paths] if isinstance(paths, str) else paths or ()))


def _image_rule(processor: ProcessorConfig) -> dict[str, Any]:
    """`image_fit` of the plan, or its `tiling` for the values that make several views of a picture."""
    tilings = {"tiles": (DynamicTiles, processor.tiles), "anyres": (AnyRes, processor.anyres)}
    if processor.image_fit not in tilings:
        return {"image_fit": processor.image_fit}
    rule, values = tilings[processor.image_fit]
    return {"tiling": rule(**vars(values))}


def _continued(folder: Path, invocation: Invocation) -> Experiment:
    own = ("resume=", "inexact_resume=")
    others = [o for o in invocation.overrides if not o.lstrip("+").startswith(own)]
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
    inexact = bool(invocation.cfg.get("inexact_resume"))
    return Experiment(check({**plain, "run_id": run_id, "inexact_resume": inexact}, invocation.registered))


def num_workers(asked: int | None, trainer: TrainerConfig) -> int:
    """Processes that load data beside each one that trains; without a wish up to 4 where a GPU trains, as LLaVA's
    scripts have, and none on a CPU."""
    if asked is not None:
        return asked
    free = (os.cpu_count() or 1) // trainer.devices - 1
    return max(0, min(4, free)) if trainer.is_on_gpu else 0


def _require_same(saved: Any, plain: Mapping[str, Any], run: RunDir, inexact: bool) -> None:
    """A run directory belongs to one configuration; where files lie may differ, and who prepares the batches.

    A processor setting that one of the two does not name, for it came with a later version, has its default there.
    An inexact resume may also have other data, another seed and other micro-batches; its checkpoint says what differs.
    """
    ignored = ("paths", "logger", "trainer", *(("data", "seed") if inexact else ()))
    free = ("num_workers", "feature_cache", "feature_cache_gb", "check_rows", "log_ids", "worker_timeout_s")

    def bound(settings: Mapping[str, Any], key: str) -> Any:
        value = settings.get(key)
        if key == "stage" and inexact and value:
            return {k: v for k, v in value.items() if k != "micro_batch_size"}
        if key != "processor" or not value:
            return value
        return {k: v for k, v in {**vars(ProcessorConfig()), **value}.items() if k not in free}

    different = [
        key for key in sorted(set(saved) | set(plain)) if key not in ignored and bound(saved, key) != bound(plain, key)
    ]
    if different:
        raise CheckpointError(
            f"the run there was made with other settings of {', '.join(different)}",
            where=str(run.path),
            fix="another run_id for other settings, or resume=<that run> to continue it with its own",
        )
