"""The check, early in a run, that what moves is what the policy opens.

Lightning types its hooks for any module; these take a `TrainingModule`, hence `type: ignore[override]`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from mmexp.engine.ranks import total
from mmexp.engine.strategy import own_share
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from mmexp.contracts import Batch
    from mmexp.engine.module import TrainingModule

log = logging.getLogger(__name__)


class MovedCheck(Callback):
    """After the first steps with a learning rate, asserts that exactly what the policy opens has moved; then it leaves.

    It waits for media of every branch, since batches of one part or one modality may begin with text alone. It has to
    be the last callback: the Trainer is going through its list while this one takes itself out.
    """

    _NUM_PROBES = 512
    _PATIENCE = 50
    """Steps without media after which it judges all the same."""

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        self._before = _probes(pl_module, self._NUM_PROBES)
        self._had_lr = any(group["lr"] > 0 for group in trainer.optimizers[0].param_groups)
        self._num_steps, self._media = 0, set[str]()

    def on_train_batch_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._media |= batch.media_owners.keys() if self._had_lr else set()
        if trainer.fit_loop._should_accumulate():
            return
        if self._had_lr and pl_module.num_skipped == 0:
            self._num_steps += 1
            is_late = self._num_steps == self._PATIENCE or trainer.global_step == trainer.max_steps
            if is_late or self._media >= pl_module.plan.inputs.keys():
                self._compare(pl_module)
                trainer.callbacks.remove(self)  # type: ignore[attr-defined]
        self._had_lr = any(group["lr"] > 0 for group in trainer.optimizers[0].param_groups)

    def _compare(self, module: TrainingModule) -> None:
        after = _probes(module, self._NUM_PROBES)
        flags = total(module.trainer, [not torch.equal(values, self._before[name]) for name, values in after.items()])
        moved = {
            name for name, flag in zip(after, flags, strict=True) if flag
        }  # in any process, where each has a share
        trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        wrongly = sorted(moved - trained)
        if wrongly:
            raise ConfigError(
                f"{len(wrongly)} frozen tensors moved: {', '.join(wrongly[:4])}",
                expected="only what stage.policy opens",
                where="stage.policy",
            )
        for name, part in module.parts().items():
            inside = {id(parameter) for parameter in part.parameters() if parameter.requires_grad}
            names = {key for key, parameter in module.named_parameters() if id(parameter) in inside}
            if names and not names & moved:
                raise ConfigError(
                    f"{name} has {len(names)} trained tensors and none moved in {self._num_steps} steps",
                    expected="a gradient that reaches it",
                    where=f"stage.policy.{name}",
                    fix="check that the data holds what this part sees, and its learning rate",
                )
        found = f"{len(moved)} of {len(trained)} trained tensors moved, no frozen one did"
        log.info("after %d steps: %s", self._num_steps, found)


def _probes(module: torch.nn.Module, count: int) -> dict[str, torch.Tensor]:
    """A few evenly spaced values of every parameter, and its sum: of an embedding table only some rows move."""
    probes = {}
    for name, parameter in module.named_parameters():
        flat = own_share(parameter).detach().flatten()
        values = flat[:: max(1, flat.numel() // count)]
        probes[name] = torch.cat([values.double(), flat.sum(dtype=torch.float64)[None]])
    return probes
