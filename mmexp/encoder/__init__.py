"""Encoders turn a medium into patch features. They know their width, grid and transform, and no other part."""

from mmexp.encoder.base import EncoderConfig
from mmexp.encoder.hf_vision import HfVision, HfVisionConfig
from mmexp.encoder.lavis import LavisVision, LavisVisionConfig
from mmexp.encoder.open_clip import OpenClipConfig, OpenClipVision, TimmVision
from mmexp.encoder.tiny import TinyVisionConfig
from mmexp.encoder.transform import ImageTransform

__all__ = [
    "EncoderConfig",
    "HfVision",
    "HfVisionConfig",
    "ImageTransform",
    "LavisVision",
    "LavisVisionConfig",
    "OpenClipConfig",
    "OpenClipVision",
    "TimmVision",
    "TinyVisionConfig",
]
