"""How and where a stage runs: the typed settings around Lightning's Trainer."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

_TRAINED_IN_HALF = ("bf16-true", "16-true")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Everything else that Lightning's Trainer takes goes through `extra`."""

    accelerator: str = "auto"
    """auto, cpu, gpu, ..."""
    devices: int = 1
    """Processes on each node, one device each."""
    num_nodes: int = 1
    """Nodes of the job."""
    strategy: str = "auto"
    """auto, ddp (a whole model in each process), deepspeed_stage_2 (that, but a share of gradients and optimizer
    states), fsdp or deepspeed_stage_3 (a share of everything), or another strategy of Lightning's."""
    precision: str = "32-true"
    """32-true, or bf16-mixed: products in bf16, trained weights in float32. Which frozen weights are stored in bf16 say
    `cast_frozen` and the part's own `dtype`."""
    cast_frozen: bool = True
    """With bf16-mixed, whether frozen matrices are stored in bfloat16, which autocast makes of them anyway: half their
    memory, and results that are bit-equal."""
    max_steps: int | None = None
    """Optimizer steps; null takes the stage's own length."""
    log_every_n_steps: int = 10
    """Steps between two records of metrics.jsonl."""
    checkpoint_every_n_steps: int = 500
    """Steps between two checkpoints to resume from."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay."""
    evaluate_every_n_steps: int | None = None
    """Steps between two evaluations of the model that is being trained, on the benchmarks of the stage, without their
    baselines; null evaluates only at the end. Weights, losses and random numbers stay what they are without it."""
    evaluate_samples: int | None = None
    """At most this many samples of each split in these evaluations: always the same, evenly spread; null takes all."""
    evaluate_attention: int = 0
    """Samples of the first benchmark with answers, always the same, for which these evaluations also draw what each
    answer token takes from the picture. Decoder-only LLMs; not where weights are shared out."""
    gradient_checkpointing: tuple[str, ...] = ()
    """Parts (llm, encoder, ...) whose blocks are computed again in backward: less memory, about a third more time."""
    compile: tuple[str, ...] = ()
    """Parts whose blocks `torch.compile` compiles; it pays where shapes repeat, as an encoder's do."""
    unused_parameters: bool = True
    """Whether ddp looks in every step for trained parameters that had no part in it, as an open encoder may have behind
    the selected layer; false is a little faster and fails where there are some."""
    process_group_timeout_s: float = 600
    """How long a process waits for the others before the run ends."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `lightning.pytorch.Trainer`, by their names."""

    def __post_init__(self) -> None:
        if self.precision in _TRAINED_IN_HALF:
            raise ConfigError(
                f"{self.precision}: trained weights in 16 bit lose the small updates of fine-tuning",
                expected="32-true or bf16-mixed",
                where="trainer.precision",
                fix="trainer.precision=bf16-mixed, and llm.dtype=bfloat16 for a frozen LLM",
            )

        for name in ("evaluate_every_n_steps", "evaluate_samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{value}", expected="at least 1, or null", where=f"trainer.{name}")
        if self.evaluate_attention < 0:
            raise ConfigError(f"{self.evaluate_attention}", expected="0 or more", where="trainer.evaluate_attention")
        if self.evaluate_attention and self.shares_weights:
            raise ConfigError(
                f"{self.evaluate_attention} with {self.strategy}",
                expected="0: one process draws, and there has no whole model",
                where="trainer.evaluate_attention",
                fix="trainer=ddp_bf16, or mmexp.inspect on the finished run",
            )
        if self.evaluate_every_n_steps is not None and self.strategy == "deepspeed_stage_3":
            raise ConfigError(
                f"{self.evaluate_every_n_steps} with {self.strategy}, which fetches weights for training steps alone",
                expected="null",
                where="trainer.evaluate_every_n_steps",
                fix="trainer=fsdp_bf16 shares out as much",
            )

    @property
    def is_on_gpu(self) -> bool:
        """Whether a GPU trains, as Lightning would choose."""
        import torch  # not at the top: the doctor reads this room's configs and must stay fast

        return self.accelerator in ("gpu", "cuda") or (self.accelerator == "auto" and torch.cuda.is_available())

    @property
    def shares_weights(self) -> bool:
        """Whether a process holds only its share of every weight."""
        return self.strategy in ("fsdp", "deepspeed_stage_3")

    @property
    def world_size(self) -> int:
        """Processes of the whole job."""
        return self.devices * self.num_nodes

    def build(self, root: Path, num_steps: int, accumulate: int, callbacks: list[Callback]) -> Trainer:
        """The Trainer for `num_steps` optimizer steps as one Lightning epoch.

        Raises:
            ConfigError: Lightning does not know an argument or a value.
        """
        from lightning.pytorch import Trainer

        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # importing it has raised the level again
        from mmexp.engine.checkpoint import AtomicCheckpointIO
        from mmexp.engine.profiler import NoProfiler
        from mmexp.engine.strategy import build_strategy

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        further: dict[str, Any] = {"profiler": NoProfiler()} | dict(self.extra)
        strategy = build_strategy(
            self.strategy, self.process_group_timeout_s, self.world_size, unused_parameters=self.unused_parameters
        )
        plugins: list[Any] = [AtomicCheckpointIO(), *_environments()]
        try:
            return Trainer(
                accelerator=self.accelerator,
                devices=self.devices,
                num_nodes=self.num_nodes,
                strategy=strategy,
                precision=self.precision,  # type: ignore[arg-type]
                max_steps=num_steps,
                max_epochs=-1,
                accumulate_grad_batches=accumulate,
                default_root_dir=root,
                logger=False,
                callbacks=callbacks,
                plugins=plugins,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                limit_val_batches=0,
                log_every_n_steps=10**9,
                **further,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(
                str(error).splitlines()[0], where="trainer", fix="see the Trainer page of Lightning"
            ) from error


def _environments() -> list[Any]:
    """SLURM's, where it started this process; requeueing is ours."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
