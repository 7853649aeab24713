"""The LightningModule: plan, objective, policy, optimizer, and nothing clever."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision

from mmexp.contracts import Batch, Losses
from mmexp.engine.blocks import set_up_blocks
from mmexp.engine.chain import Changed, Start, load_starts
from mmexp.engine.checkpoint import check_state, trained_names
from mmexp.engine.frozen import require_loaded
from mmexp.engine.gather import gather_rows
from mmexp.engine.gradients import GradNorms, clip
from mmexp.engine.memory import Load
from mmexp.engine.optim import AdamWCosineConfig
from mmexp.engine.recipe import Recipe
from mmexp.engine.record import fingerprint
from mmexp.engine.seeding import mix, seed_step
from mmexp.engine.strategy import ShardedStrategy, ZeroStrategy, shares_weights
from mmexp.engine.window import Window
from mmexp.errors import DataError
from mmexp.llm import quantize_llm, require_library
from mmexp.tuning import (
    TrainedPart,
    apply_policy,
    cast_adapter_inputs,
    describe,
    parameter_groups,
    store_frozen,
)

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor, nn

    from mmexp.engine.features import FeatureCache
    from mmexp.model import MultimodalModel, Plan
    from mmexp.objective import ObjectiveConfig

log = logging.getLogger(__name__)

_BAD_STEPS_IN_A_ROW = 5
_NOTES = frozenset({"_current_fx_name", "load", "latest", "last_norm", "grad_norms", "_bad_in_a_row"})
"""Attributes that change several times a step and never hold a tensor of the module."""


def _with_signature(method: Any) -> Any:
    """Lightning inspects the arguments of `training_step` in every step; with its signature kept, that is a look-up."""
    method.__signature__ = inspect.signature(method)
    return method


class TrainingModule(LightningModule):
    """Trains what the policy opens, with gradients weighted by supervised tokens over the whole optimizer step.

    Args:
        plan: Builds the model.
        objective: Builds the loss.
        optim: Builds optimizer and schedule.
        recipe: The stage's numbers.
        init_from: Runs and foreign checkpoints whose weights come first, in this order, before the policy is applied.

    Raises:
        ConfigError: what stores the LLM in few bits is not installed.
    """

    def __init__(
        self,
        plan: Plan,
        objective: ObjectiveConfig,
        optim: AdamWCosineConfig,
        recipe: Recipe,
        init_from: Sequence[Start] = (),
    ) -> None:
        super().__init__()
        self.strict_loading = False  # a checkpoint holds only what trains; `check_state` compares exactly
        self.plan, self.recipe, self.init_from = plan, recipe, init_from
        self._objective_config, self._optim = objective, optim
        self._storage: Any = getattr(plan.llm, "quantize", "none")
        require_library(self._storage)
        self.model: MultimodalModel | None = None
        self.objective: Any = None
        self.changed: Changed = {}
        self.frozen = ""
        """Fingerprint of the weights that do not train."""
        self.features: FeatureCache | None = None
        """Keeps what frozen encoders make of pictures; set it before the model is built."""
        self.load: Load | None = None
        """What the micro-batch in hand holds, for the error when memory is short."""
        self.latest: Losses | None = None
        """Losses of the last micro-batch, for the log."""
        self.last_norm = 0.0
        """Gradient norm of the last optimizer step, before clipping."""
        self.grad_norms: GradNorms | None = None
        """The same, tensor by tensor; None under DeepSpeed, which keeps them to itself."""
        self.num_skipped = 0
        """Optimizer steps left out because a gradient was not finite."""
        self.has_cast = False
        """Whether frozen weights are stored in less than the base weights' precision, for training under autocast."""
        self._bad_in_a_row = 0
        self._window = Window()

    def __setattr__(self, name: str, value: Any) -> None:
        # torch compares every value with what a module may hold; Lightning notes the name of a hook 50 times a step
        if name in _NOTES:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _on_before_batch_transfer(self, batch: Batch, dataloader_idx: int = 0) -> Batch:
        return batch  # Lightning looks for hooks of three names, in two places, in every step; here are none

    def _apply_batch_transfer_handler(
        self, batch: Batch, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Batch:
        device = device or self.device
        return batch.to(device, non_blocking=device.type == "cuda")

    def configure_model(self) -> None:
        if self.model is not None:
            return
        with torch.device("cpu"):  # where Lightning asks for the GPU, fresh weights would be others than on a CPU
            self._build()
        set_up_blocks(self.parts(), self.recipe.gradient_checkpointing, self.recipe.compiled)
        strategy = self._strategy()
        if isinstance(strategy, ShardedStrategy):
            strategy.shard(self)

    def _build(self) -> None:
        """Makes model and objective in the memory of the machine, and opens, casts and adapts what the recipe says."""
        recipe = self.recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)  # fresh weights follow from the seed and nothing else
            self.model = self.plan.build()
            self.objective = self._objective_config.build(self.plan)
        self.objective.requires(self.plan)
        if hasattr(self.objective, "gather"):
            self.objective.gather = gather_rows
        self.changed = load_starts(self.parts(), self.init_from)
        quantize_llm(self.model.llm, self._storage, self._target_device(), self.changed.get("llm", ()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)  # fresh adapters too
            apply_policy(self.model, recipe.policy, recipe.lora, recipe.live_dropout, recipe.new_tokens)
        if not recipe.allow_random_frozen:
            require_loaded(self.plan, self.parts(), self.changed, recipe.policy)
        self._table = describe(self.parts(), recipe.policy, recipe.lr, recipe.lr_by_part)
        self.frozen = fingerprint(self.model)
        if computes_in_bfloat16(self._trainer):
            cast_adapter_inputs(self.model, on=False)
        if recipe.cast_frozen and not shares_weights(self._strategy()) and computes_in_bfloat16(self._trainer):
            freed = store_frozen(self.parts(), torch.bfloat16, self.changed)
            self.has_cast = freed > 0
            log.info("frozen matrices are stored in bfloat16: %.1f MB less", freed / 2**20)
        if self.features is not None:
            self.features.open(self)

    def _strategy(self) -> Any:
        """The Trainer's; None without one, where Lightning's property raises."""
        return self._trainer.strategy if self._trainer else None

    def fresh(self) -> TrainingModule:
        """The same, before its model is built."""
        return TrainingModule(self.plan, self._objective_config, self._optim, self.recipe, self.init_from)

    def _target_device(self) -> torch.device:
        """Where the strategy will move the model; the module's own device without a trainer."""
        trainer = self._trainer
        return self.device if trainer is None else trainer.strategy.root_device

    def parts(self) -> dict[str, nn.Module]:
        """Encoder, connector, llm, ... and `objective` when it owns weights."""
        assert self.model is not None
        heads = {"objective": self.objective} if any(True for _ in self.objective.parameters()) else {}
        return self.model.parts() | heads

    def table(self) -> list[TrainedPart]:
        """What trains, and with which learning rate; as it was before strategies share it out."""
        return self._table

    @_with_signature
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        seed_step(mix(self.recipe.seed, datamodule.position, self.trainer.global_rank), self.device)
        self.load = Load.of(batch)
        losses = self.objective(self.model, batch)
        self.latest = losses
        datamodule.advance(batch)
        return self._window.normalised(losses, batch.ids, self.trainer)

    def answering(self, call: Callable[..., Any], *args: Any) -> Any:
        """Calls something that runs the model outside a step; where weights are shared out, with what is outside blocks
        fetched."""
        return call(*args)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turns the sum of micro-batch losses into the mean over all supervised tokens of the step."""
        factor = self._window.factor(self.recipe.accumulate, self.trainer)
        strategy = self._strategy()
        if isinstance(strategy, ZeroStrategy):
            strategy.factor = factor
        elif factor != 1.0:
            gradients = [p.grad for p in self._trained() if p.grad is not None]
            torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips, and leaves a step out when its gradient is not finite: one bad batch must not ruin the weights."""
        if isinstance(self._strategy(), ZeroStrategy):
            return  # DeepSpeed does both in its step
        self.grad_norms = clip(self._trained(), self.recipe.grad_clip)
        if not (norm := self.grad_norms.total) < float("inf"):
            for parameter in self._trained():
                parameter.grad = None
        self.note_norm(norm)

    def note_norm(self, norm: float) -> None:
        """Takes note of a step's gradient norm before clipping; inf or nan where the step is left out.

        Raises:
            DataError: several such steps in a row.
        """
        self.last_norm = norm
        finite = norm < float("inf")
        self._bad_in_a_row = 0 if finite else self._bad_in_a_row + 1
        if not finite:
            self.num_skipped += 1
            log.warning("gradient is %s; this step is left out (samples %s)", norm, self._window.ids[:8])
        if self._bad_in_a_row >= _BAD_STEPS_IN_A_ROW:
            raise DataError(
                f"the gradient was not finite in {_BAD_STEPS_IN_A_ROW} steps in a row",
                where=f"step {self.global_step}, samples {', '.join(self._window.ids[:8])}",
                fix="a lower stage.lr, stage.grad_clip=1.0, or trainer.precision=32-true",
            )
        self._window.ids = []

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        rates = (recipe.lr, recipe.lr_by_part, recipe.weight_decay, recipe.layer_decay)
        groups = parameter_groups(self.parts(), *rates)
        optimizer, scheduler = self._optim.build(groups, recipe.num_steps, recipe.warmup_ratio)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        names = trained_names(self)
        state = checkpoint.get("state_dict", {})
        checkpoint["state_dict"] = {name: state[name] for name in names if name in state}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_state(checkpoint["state_dict"], self)

    def teardown(self, stage: str) -> None:
        cast_adapter_inputs(self, on=True)  # nobody knows whether what comes runs under autocast

    def _trained(self) -> list[nn.Parameter]:
        if not hasattr(self, "_trained_parameters"):
            self._trained_parameters = [p for p in self.parameters() if p.requires_grad]
        return self._trained_parameters


def computes_in_bfloat16(trainer: Trainer | None) -> bool:
    """Whether the Trainer runs under plain autocast to bfloat16 (FSDP and DeepSpeed have their own ways)."""
    plugin = trainer.precision_plugin if trainer is not None else None
    return type(plugin) is MixedPrecision and plugin.precision == "bf16-mixed"
