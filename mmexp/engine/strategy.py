"""How the processes of a job share the work. Whatever they do, a checkpoint holds full tensors under the same names."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch.distributed.tensor import DTensor

from mmexp.engine.replicated import ReplicatedStrategy
from mmexp.engine.sharded import ShardedStrategy
from mmexp.engine.zero import ZeroStrategy
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import Strategy
    from torch import Tensor

    from mmexp.engine.module import TrainingModule

_ZERO = {"deepspeed_stage_2": 2, "deepspeed_stage_3": 3}


def build_strategy(name: str, timeout_s: float, world_size: int, *, unused_parameters: bool = False) -> Strategy | str:
    """The strategy `name`: auto, ddp, fsdp, deepspeed_stage_2, deepspeed_stage_3, or another one of Lightning's, which
    is taken as it is.

    Args:
        name: As in `trainer.strategy`.
        timeout_s: How long a process waits for the others.
        world_size: Processes of the whole job.
        unused_parameters: Whether DDP looks, in every step, for parameters that had no part in it.

    Raises:
        ConfigError: a strategy that cannot do what a run needs, or whose library is not installed.
    """
    timeout = timedelta(seconds=timeout_s)
    if name == "fsdp":
        return ShardedStrategy(
            data_parallel_size=world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=timeout,
        )
    if name == "ddp" or (name == "auto" and world_size > 1):
        return ReplicatedStrategy(
            timeout=timeout, find_unused_parameters=unused_parameters, gradient_as_bucket_view=True
        )
    if name in _ZERO:
        return ZeroStrategy(_ZERO[name], timeout)
    if name.startswith("deepspeed"):
        raise ConfigError(
            f"{name}: not one of those whose steps and checkpoints are those of one process",
            expected=f"{', '.join(_ZERO)}, fsdp, ddp or auto",
            where="trainer.strategy",
            fix="trainer=deepspeed_zero3",
        )
    return name


def shares_weights(strategy: Any) -> bool:
    """Whether a process holds only its share of the weights, so that all processes must run the same modules."""
    return isinstance(strategy, ShardedStrategy) or (isinstance(strategy, ZeroStrategy) and strategy.shares_weights)


def own_share(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    return getattr(parameter, "ds_tensor", parameter)  # DeepSpeed's name for it, stage 3


def plain_module(trainer: Trainer, module: TrainingModule) -> TrainingModule:
    """The trained module as one process would have it. Where it was shared out, the first process builds it once more.

    All processes must ask; what the others get is of no further use.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ShardedStrategy | ZeroStrategy):
        return module
    state = strategy.lightning_module_state_dict()
    if not trainer.is_global_zero:
        return module
    plain = module.fresh()
    plain.configure_model()
    plain.load_state_dict(state, strict=False)
    plain.num_skipped = module.num_skipped
    return plain
