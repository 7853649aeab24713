"""Training under Lightning: run directories, the module, checkpoints, the chain of stages, and predictors.

The names are imported when they are first used: Lightning takes seconds to import, and the doctor, which only reads
the configs of this room, must answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmexp.engine.chain import load_weights, save_weights
    from mmexp.engine.fitting import fit
    from mmexp.engine.heartbeat import LostProcess
    from mmexp.engine.job import StageJob
    from mmexp.engine.log import console, setup_logging
    from mmexp.engine.manifest import RunDir, open_run_dir, provenance
    from mmexp.engine.module import TrainingModule
    from mmexp.engine.optim import AdamWCosineConfig
    from mmexp.engine.predict import Generator
    from mmexp.engine.recipe import Recipe
    from mmexp.engine.signals import Interrupted
    from mmexp.engine.tensorboard import TensorBoardConfig
    from mmexp.engine.trackers import Tracking
    from mmexp.engine.trainer import TrainerConfig
    from mmexp.engine.wandb_tracker import WandbConfig

_HOMES = {
    "AdamWCosineConfig": "optim",
    "Generator": "predict",
    "Interrupted": "signals",
    "LostProcess": "heartbeat",
    "Recipe": "recipe",
    "RunDir": "manifest",
    "StageJob": "job",
    "TensorBoardConfig": "tensorboard",
    "Tracking": "trackers",
    "TrainerConfig": "trainer",
    "TrainingModule": "module",
    "WandbConfig": "wandb_tracker",
    "console": "log",
    "fit": "fitting",
    "load_weights": "chain",
    "open_run_dir": "manifest",
    "provenance": "manifest",
    "save_weights": "chain",
    "setup_logging": "log",
}
__all__ = [
    "AdamWCosineConfig",
    "Generator",
    "Interrupted",
    "LostProcess",
    "Recipe",
    "RunDir",
    "StageJob",
    "TensorBoardConfig",
    "Tracking",
    "TrainerConfig",
    "TrainingModule",
    "WandbConfig",
    "console",
    "fit",
    "load_weights",
    "open_run_dir",
    "provenance",
    "save_weights",
    "setup_logging",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
