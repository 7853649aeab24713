"""ZeRO: DeepSpeed shares out optimizer states and gradients (stage 2), and every weight too (stage 3).

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 5.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from mmexp.engine.blocks import blocks_of
from mmexp.engine.checkpoint import trained_names
from mmexp.engine.replicated import ReplicatedStrategy
from mmexp.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from mmexp.engine.module import TrainingModule

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight."""


class ZeroStrategy(ReplicatedStrategy):
    """DeepSpeed's engine under Lightning's loop; checkpoints hold what those of one process hold.

    Lightning's own DeepSpeed strategy wants a GPU, steps with losses that are means over a micro-batch, and writes
    folders of shares. Here a step is normalised by its supervised tokens, a step with a gradient that is not finite is
    left out, and a checkpoint is one file that any strategy continues from. Each process first builds the whole model
    in the memory of its machine.

    Args:
        stage: 2 or 3.
        timeout: How long a process waits for the others.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """

    def __init__(self, stage: int, timeout: timedelta) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise ConfigError(
                f"deepspeed_stage_{stage}, but DeepSpeed is not installed",
                where="trainer.strategy",
                fix="pip install 'mmexp[deepspeed]', or trainer=fsdp_bf16, which shares out the same things",
            )
        super().__init__(timeout=timeout)
        self.stage = stage
        self.factor = 1.0
        """What the gradients of this step are multiplied by."""
        self._engine: Any = None
        self._groups: list[list[nn.Parameter]] = []

    @property
    def shares_weights(self) -> bool:
        """Whether a process holds only its share of a weight, frozen ones too."""
        return self.stage == 3

    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None
        assert self.model is not None
        module: Any = self.model
        self.accelerator.setup(trainer)
        self.setup_optimizers(trainer)
        self._groups = [list(group["params"]) for group in self.optimizers[0].param_groups]
        self._engine = self._start_engine(module, trainer)
        self._give_empty_moments()
        self.model = self._engine
        self.setup_precision_plugin()

    def _start_engine(self, module: TrainingModule, trainer: Trainer) -> Any:
        if self.root_device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would take a GPU where there is one
        import deepspeed

        deepspeed.utils.logging.logger.setLevel(logging.WARNING)
        deepspeed.init_distributed(dist_init_required=False)
        settings = _settings(self.stage, module.recipe.grad_clip, trainer.precision)
        if self.shares_weights:  # one tensor after the other, so that a device never holds the whole model
            deepspeed.zero.Init(module=module, config_dict_or_path=settings)
            for buffer in module.buffers():
                buffer.data = buffer.data.to(self.root_device)
            for parameter in _outside_blocks(module):  # some are read without calling the module they belong to
                deepspeed.zero.register_external_parameter(module, parameter)
            assert module.model is not None
            module.model.runs_every_branch = True  # a weight that one process fetches, all of them must
        else:
            self.model_to_device()
        optimizer: Any = self.optimizers[0]
        return deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)[0]

    def _give_empty_moments(self) -> None:
        """AdamW makes its states in the first step; a checkpoint must find them before."""
        shares = self._shares()
        for share in shares:
            self._adam.state[share] = {
                "step": torch.zeros((), dtype=torch.float32, device=share.device),
                **{name: torch.zeros_like(share) for name in _MOMENTS},
            }
        if not self.shares_weights:
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            for group, share in zip(self._engine.optimizer.bit16_groups, shares, strict=True):
                lazy_init_hp_params_optimizer_state(group, share, self._adam.state)

    @property
    def _adam(self) -> Any:
        return self._engine.optimizer.optimizer

    def _shares(self) -> list[Any]:
        """This process's part of all trained weights, as DeepSpeed gives it to AdamW."""
        zero = self._engine.optimizer
        return zero.fp32_partitioned_groups_flat if self.shares_weights else zero.single_partition_of_fp32_groups

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Shares are reduced in every micro-batch: a process has no room for whole gradients."""
        yield

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self._engine.backward(closure_loss, scale_wrt_gas=False)  # Lightning has divided already

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Scales, clips and steps; DeepSpeed leaves a step out by itself when a gradient is not finite."""
        module: Any = self.lightning_module
        result = closure()
        self.precision_plugin._after_closure(module, optimizer)  # the hooks before a step, which set `factor`
        zero = self._engine.optimizer
        zero.override_loss_scale(1 / self.factor)
        self._engine.step()
        zero.override_loss_scale(1.0)
        module.note_norm(float("inf") if zero.overflow else float(zero._global_grad_norm))
        return result

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What trains, whole, on the first process; nothing on the others."""
        from deepspeed.utils import safe_get_full_fp32_param

        module: Any = self.lightning_module
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        found = {}
        for name in sorted(trained_names(module)):
            whole: Any = safe_get_full_fp32_param(parameters[name]) if name in parameters else buffers[name]
            if self.is_global_zero:
                found[name] = whole.to("cpu", copy=True)
        return found

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As of one process, on the first one; nothing on the others."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[int, dict[str, Tensor]] = {}
        step = self._adam.state[self._shares()[0]]["step"].cpu()
        for number, parameter in self._numbered():
            whole: dict[str, Any] = {name: safe_get_full_optimizer_state(parameter, name) for name in _MOMENTS}
            if self.is_global_zero:
                state[number] = {"step": step, **{name: value.cpu() for name, value in whole.items()}}
        return {"state": state, "param_groups": self._settings_of_groups()} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (saved,) = checkpoint["optimizer_states"]
        for group, values in zip(self._adam.param_groups, saved["param_groups"], strict=True):
            group |= {name: value for name, value in values.items() if name != "params"}
        steps = {float(values["step"]) for values in saved["state"].values()}
        if len(steps) != 1:
            raise CheckpointError(
                f"its weights have had different numbers of steps ({sorted(steps)})",
                expected="one number, which is all that DeepSpeed keeps",
                where="checkpoint",
                fix="continue with trainer=ddp_bf16 or trainer=fsdp_bf16",
            )
        for share in self._shares():
            self._adam.state[share]["step"].fill_(*steps)
        for number, parameter in self._numbered():
            for name in _MOMENTS:
                self._set_moment(parameter, name, saved["state"][number][name])

    def _set_moment(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        from deepspeed import utils

        value = value.to(self.root_device, torch.float32)
        if not self.shares_weights:
            utils.safe_set_full_optimizer_state(parameter, value, name)
            return
        share = utils.safe_get_local_optimizer_state(parameter, name).numel()  # the last ones are filled up
        padded = torch.zeros(share * self.world_size, device=value.device)
        padded[: value.numel()] = value.flatten()
        utils.safe_set_local_optimizer_state(parameter, padded.view(self.world_size, share)[self.global_rank], name)

    def _numbered(self) -> Iterator[tuple[int, nn.Parameter]]:
        """Trained parameters under the numbers that one process would give them."""
        return enumerate(parameter for group in self._groups for parameter in group)

    def _settings_of_groups(self) -> list[dict[str, Any]]:
        numbers = iter(range(sum(len(group) for group in self._groups)))
        return [
            {name: value for name, value in settings.items() if name != "params"}
            | {"params": [next(numbers) for _ in group]}
            for settings, group in zip(self._adam.param_groups, self._groups, strict=True)
        ]

    def teardown(self) -> None:
        """Shares stay where they are: `plain_module` asks for the whole weights afterwards."""
        assert self.accelerator is not None
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()


def _outside_blocks(module: TrainingModule) -> list[nn.Parameter]:
    """Parameters of no repeated block."""
    inside = {id(p) for part in module.parts().values() for block in blocks_of(part) for p in block.parameters()}
    return [p for p in module.parameters() if id(p) not in inside]


def _settings(stage: int, grad_clip: float | None, precision: str) -> dict[str, Any]:
    """DeepSpeed's configuration. Trained weights and what is sent are float32, as under every strategy here."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # only its own log of throughput reads it
        "managed_gradient_accumulation": False,  # Lightning says when a step is
        "gradient_clipping": grad_clip or 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    if precision == "bf16-mixed":
        autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        settings["torch_autocast"] = autocast
    return settings
