"""One reader per annotation format: rows to samples, knowing no model."""

from mmexp.data.readers.llava import LlavaJsonConfig

__all__ = ["LlavaJsonConfig"]
