"""Conversations to tokens: chat templates as data, tokenising by segment, and the processor that makes `Item`s.

Nothing here knows a model; lengths, labels and slots are decided here, on the CPU, and never change afterwards.
"""

from mmexp.prompt.boxes import OutsideViewError, to_picture, to_view
from mmexp.prompt.boxtext import BoxText
from mmexp.prompt.common import common_length
from mmexp.prompt.encoded import Encoded
from mmexp.prompt.exchanges import describe
from mmexp.prompt.image import BadMediaError, image_size, load_image
from mmexp.prompt.instruction import InstructionTokenizer
from mmexp.prompt.jinja import to_jinja
from mmexp.prompt.media import FeatureLookup
from mmexp.prompt.processor import Layout, Processor, TooLongError
from mmexp.prompt.region import RegionFormat
from mmexp.prompt.template import ChatTemplate
from mmexp.prompt.tiles import AnyRes, DynamicTiles
from mmexp.prompt.tokenizer import SegmentTokenizer
from mmexp.prompt.views import TiledTransform

__all__ = [
    "AnyRes",
    "BadMediaError",
    "BoxText",
    "ChatTemplate",
    "DynamicTiles",
    "Encoded",
    "FeatureLookup",
    "InstructionTokenizer",
    "Layout",
    "OutsideViewError",
    "Processor",
    "RegionFormat",
    "SegmentTokenizer",
    "TiledTransform",
    "TooLongError",
    "common_length",
    "describe",
    "image_size",
    "load_image",
    "to_jinja",
    "to_picture",
    "to_view",
]
