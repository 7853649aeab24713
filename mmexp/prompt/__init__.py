"""Conversations to tokens: chat templates as data, tokenising by segment, and the processor that makes `Item`s.

Nothing here knows a model; lengths, labels and slots are decided here, on the CPU, and never change afterwards.
"""

from mmexp.prompt.encoded import Encoded
from mmexp.prompt.image import load_image
from mmexp.prompt.jinja import to_jinja
from mmexp.prompt.processor import Layout, Processor, TooLongError, describe
from mmexp.prompt.region import RegionFormat
from mmexp.prompt.template import ChatTemplate
from mmexp.prompt.tokenizer import SegmentTokenizer

__all__ = [
    "ChatTemplate",
    "Encoded",
    "Layout",
    "Processor",
    "RegionFormat",
    "SegmentTokenizer",
    "TooLongError",
    "describe",
    "load_image",
    "to_jinja",
]
