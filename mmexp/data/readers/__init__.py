"""One reader per annotation format: rows to samples, knowing no model."""

from mmexp.data.readers.llava import LlavaJson, LlavaJsonConfig

__all__ = ["LlavaJson", "LlavaJsonConfig"]
