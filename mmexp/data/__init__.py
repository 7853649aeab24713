"""Data: readers of annotation files, the order of a run, batches, and the checks before a run starts.

Names that need torch or Lightning are imported when they are first used, so that reading a config stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmexp.data.endpoint import EndpointRewriterConfig
from mmexp.data.mixture import MixtureConfig, PartConfig
from mmexp.data.readers import (
    AutoConfig,
    CocoCaptionsConfig,
    Columns,
    GqaConfig,
    ImageFolderConfig,
    InstructionsConfig,
    InternVlMixtureConfig,
    LavisCaptionsConfig,
    LavisVqaConfig,
    LlavaJsonConfig,
    MessagesConfig,
    MiniGpt4CaptionsConfig,
    PopeConfig,
    QwenVlJsonConfig,
    RefCocoConfig,
    ScienceQaConfig,
    ShareGptConfig,
    TableConfig,
    TarsConfig,
    TextVqaConfig,
    VqaV2Config,
)
from mmexp.data.rewrite import LocalRewriterConfig

if TYPE_CHECKING:
    from mmexp.data.check import PreflightReport, preflight, require_trainable
    from mmexp.data.check_kept import checked
    from mmexp.data.collate import Collator
    from mmexp.data.datamodule import MultimodalDataModule
    from mmexp.data.dataset import DropCounts, Dropped, TrainingData, fingerprint
    from mmexp.data.run_order import OrderSettings, build_order
    from mmexp.data.sampler import RunOrder, RunSampler

_HOMES = {
    "Collator": "collate",
    "DropCounts": "dataset",
    "Dropped": "dataset",
    "MultimodalDataModule": "datamodule",
    "OrderSettings": "run_order",
    "PreflightReport": "check",
    "RunOrder": "sampler",
    "RunSampler": "sampler",
    "TrainingData": "dataset",
    "build_order": "run_order",
    "checked": "check_kept",
    "fingerprint": "dataset",
    "preflight": "check",
    "require_trainable": "check",
}
__all__ = [
    "AutoConfig",
    "CocoCaptionsConfig",
    "Collator",
    "Columns",
    "DropCounts",
    "Dropped",
    "EndpointRewriterConfig",
    "GqaConfig",
    "ImageFolderConfig",
    "InstructionsConfig",
    "InternVlMixtureConfig",
    "LavisCaptionsConfig",
    "LavisVqaConfig",
    "LlavaJsonConfig",
    "LocalRewriterConfig",
    "MessagesConfig",
    "MiniGpt4CaptionsConfig",
    "MixtureConfig",
    "MultimodalDataModule",
    "OrderSettings",
    "PartConfig",
    "PopeConfig",
    "PreflightReport",
    "QwenVlJsonConfig",
    "RefCocoConfig",
    "RunOrder",
    "RunSampler",
    "ScienceQaConfig",
    "ShareGptConfig",
    "TableConfig",
    "TarsConfig",
    "TextVqaConfig",
    "TrainingData",
    "VqaV2Config",
    "build_order",
    "checked",
    "fingerprint",
    "preflight",
    "require_trainable",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
