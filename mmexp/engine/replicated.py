"""DDP: a whole model in every process; gradients are averaged."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy

from mmexp.engine.launcher import Launcher


class ReplicatedStrategy(DDPStrategy):
    """A whole model in every process; gradients are averaged."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)
