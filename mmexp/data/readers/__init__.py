"""One reader per annotation format: rows to samples, knowing no model."""

from mmexp.data.readers.alpaca import InstructionsConfig
from mmexp.data.readers.auto import AutoConfig
from mmexp.data.readers.coco import CocoCaptionsConfig
from mmexp.data.readers.columns import Columns
from mmexp.data.readers.gqa import GqaConfig
from mmexp.data.readers.imagefolder import ImageFolderConfig
from mmexp.data.readers.internvl import InternVlMixtureConfig
from mmexp.data.readers.lavis import LavisCaptionsConfig, LavisVqaConfig
from mmexp.data.readers.llava import LlavaJsonConfig
from mmexp.data.readers.messages import MessagesConfig
from mmexp.data.readers.minigpt4 import MiniGpt4CaptionsConfig
from mmexp.data.readers.pope import PopeConfig
from mmexp.data.readers.qwen_vl import QwenVlJsonConfig
from mmexp.data.readers.refcoco import RefCocoConfig
from mmexp.data.readers.scienceqa import ScienceQaConfig
from mmexp.data.readers.sharegpt import ShareGptConfig
from mmexp.data.readers.tables import TableConfig
from mmexp.data.readers.tars import TarsConfig
from mmexp.data.readers.textvqa import TextVqaConfig
from mmexp.data.readers.vqa import VqaV2Config

__all__ = [
    "AutoConfig",
    "CocoCaptionsConfig",
    "Columns",
    "GqaConfig",
    "ImageFolderConfig",
    "InstructionsConfig",
    "InternVlMixtureConfig",
    "LavisCaptionsConfig",
    "LavisVqaConfig",
    "LlavaJsonConfig",
    "MessagesConfig",
    "MiniGpt4CaptionsConfig",
    "PopeConfig",
    "QwenVlJsonConfig",
    "RefCocoConfig",
    "ScienceQaConfig",
    "ShareGptConfig",
    "TableConfig",
    "TarsConfig",
    "TextVqaConfig",
    "VqaV2Config",
]
