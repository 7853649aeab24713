"""The model and its plan: configs to shapes to modules, and one forward pass that training and evaluation share."""

from mmexp.model.multimodal import Branch, MultimodalModel
from mmexp.model.plan import Plan
from mmexp.model.prompt_plan import InputPlan, PromptPlan

__all__ = ["Branch", "InputPlan", "MultimodalModel", "Plan", "PromptPlan"]
