"""Language models: embeddings to hidden states to text, behind one small contract."""

from mmexp.llm.base import Llm, LlmConfig, Sampling, Watch
from mmexp.llm.causal import CausalConfig, CausalLlm
from mmexp.llm.checkpoint import LlmCheckpoint, load_tokenizer
from mmexp.llm.none import NoLlm, NoLlmConfig
from mmexp.llm.quantize import Storage, num_weights, quantize_llm, require_library
from mmexp.llm.qwen import QwenConfig
from mmexp.llm.rows import new_rows
from mmexp.llm.seq2seq import Seq2SeqConfig, Seq2SeqLlm
from mmexp.llm.tiny import TinyLlmConfig

__all__ = [
    "CausalConfig",
    "CausalLlm",
    "Llm",
    "LlmCheckpoint",
    "LlmConfig",
    "NoLlm",
    "NoLlmConfig",
    "QwenConfig",
    "Sampling",
    "Seq2SeqConfig",
    "Seq2SeqLlm",
    "Storage",
    "TinyLlmConfig",
    "Watch",
    "load_tokenizer",
    "new_rows",
    "num_weights",
    "quantize_llm",
    "require_library",
]
