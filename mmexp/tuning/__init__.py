"""What trains, and how: the policy tree, LoRA, and the optimizer's parameter groups."""

from mmexp.tuning.groups import parameter_groups
from mmexp.tuning.lora import LoraSettings, cast_adapter_inputs, has_adapter, merge_adapter, save_adapter
from mmexp.tuning.policy import TrainedPart, apply_policy, describe
from mmexp.tuning.storage import store_frozen

__all__ = [
    "LoraSettings",
    "TrainedPart",
    "apply_policy",
    "cast_adapter_inputs",
    "describe",
    "has_adapter",
    "merge_adapter",
    "parameter_groups",
    "save_adapter",
    "store_frozen",
]
