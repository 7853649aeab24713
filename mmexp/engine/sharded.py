"""FSDP2: a share of every tensor in each process. Checkpoints hold whole tensors under the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.tensor import DTensor, distribute_tensor

from mmexp.engine.blocks import blocks_of
from mmexp.engine.checkpoint import trained_names
from mmexp.engine.launcher import Launcher

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from mmexp.engine.module import TrainingModule


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2: every process keeps its share of every tensor, frozen ones too, and fetches a block when it is its turn.

    Each process first builds the whole model in the memory of its machine.
    """

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def shard(self, module: TrainingModule) -> None:
        """Shards the repeated blocks of every part, then the rest, in place.

        The root is the module itself with its training step, so that an objective may call parts of the model.
        """
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        mesh = self.device_mesh["data_parallel"]
        # Autocast keeps a bf16 copy of every matrix that it meets in float32; fetched in bf16, none is made
        in_half = self.precision_plugin.precision == "bf16-mixed"
        halved = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        policy = halved if in_half else MixedPrecisionPolicy()
        for part in module.parts().values():
            for block in blocks_of(part):
                if in_half and (norms := _norms(block)):
                    fully_shard(norms, mesh=mesh)  # autocast leaves them in float32
                fully_shard(block, mesh=mesh, mp_policy=policy)
        assert module.model is not None
        module.model.runs_every_branch = True  # a block that one process fetches, all of them must
        fully_shard(module, mesh=mesh)
        for method in ("training_step", "answering"):
            register_fsdp_forward_method(module, method)

    def prepare_answers(self, module: TrainingModule) -> None:
        """Fetches every weight once. What weights are fetched into is made the first time; if that were in inference
        mode, training could not use it."""
        module.answering(lambda: None)
        for part in _shared_out(module):
            part.unshard()
            part.reshard()

    def release(self, module: TrainingModule) -> None:
        """Gives back what is outside blocks, which otherwise stays fetched until the next step's backward pass."""
        for part in _shared_out(module):
            part.reshard()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What trains, whole, on the first process; nothing on the others."""
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        return self._on_main({name: state[name] for name in sorted(trained_names(self.lightning_module))})

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        with torch.no_grad():
            for name, tensor in checkpoint["state_dict"].items():
                own[name].copy_(_like(tensor, own[name]))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As of one process, on the first one; nothing on the others."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        whole = {key: self._on_main(values) for key, values in state["state"].items()}
        return {**state, "state": whole} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            shares = {key: {k: _like(v, parameters[key]) for k, v in vs.items()} for key, vs in state["state"].items()}
            optimizer.load_state_dict({**state, "state": shares})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def _on_main(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Full tensors in the memory of the first process. One after the other: only one is whole on a device."""
        found = {}
        for name, value in tensors.items():
            whole = whole_tensor(value) if isinstance(value, torch.Tensor) else value
            if self.is_global_zero:
                found[name] = whole.cpu() if isinstance(whole, torch.Tensor) else whole
        return found


def _shared_out(module: nn.Module) -> list[Any]:
    """The modules whose own weights are fetched together."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _norms(block: nn.Module) -> list[nn.Module]:
    """What has weights of its own and none of them a matrix."""
    own = [(child, list(child.parameters(recurse=False))) for child in block.modules()]
    return [child for child, weights in own if weights and all(weight.ndim < 2 for weight in weights)]


def whole_tensor(tensor: Tensor) -> Tensor:
    """The full tensor behind a shard; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(value: Any, parameter: Tensor) -> Any:
    """A full tensor as shards like those of `parameter`, where it has its shape."""
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
