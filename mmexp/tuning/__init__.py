"""What trains, and how: the policy tree, LoRA, and the optimizer's parameter groups."""

from mmexp.tuning.lora import LoraSettings, merge_adapter, save_adapter
from mmexp.tuning.policy import TrainedPart, apply_policy, describe, parameter_groups
from mmexp.tuning.storage import store_frozen

__all__ = [
    "LoraSettings",
    "TrainedPart",
    "apply_policy",
    "describe",
    "merge_adapter",
    "parameter_groups",
    "save_adapter",
    "store_frozen",
]
