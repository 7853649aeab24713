"""To and from transformers: names of tensors, configs, processors, and the proof that both sides say the same."""

from mmexp.hf.adapter import export_adapter
from mmexp.hf.foreign import is_checkpoint
from mmexp.hf.start import load_foreign
from mmexp.hf.verify import Agreement
from mmexp.hf.write import Export

__all__ = ["Agreement", "Export", "export_adapter", "is_checkpoint", "load_foreign"]
