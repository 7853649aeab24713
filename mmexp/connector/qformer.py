"""The Q-Former of BLIP-2: learned queries read an image's features, with or without text beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mmexp.connector.base import before_calls
from mmexp.connector.qformer_bert import take_bert
from mmexp.connector.qformer_layers import Bert, Embeddings, Encoder, Head, KeyValue, QformerLayer, additive
from mmexp.contracts import InstructionSpec
from mmexp.errors import ConfigError, SpliceError

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.contracts import EncoderSpec

_HEAD = r"cls"
_TEXT = r"cls|bert\.embeddings\.(word|position)_embeddings|bert\.encoder\.layer\.\d+\.(intermediate|output)"
"""What the variants lack: the head, and with it all that is text's own."""


@dataclass(frozen=True, kw_only=True)
class QformerConfig:
    """Q-Former, then a linear layer W -> D where there is an LLM; N is the number of queries.

    Source: BLIP-2 (Li et al. 2023), section 3.1 and figure 2; parameter names and numerics as salesforce/LAVIS
    @ 506965b lavis/models/blip2_models/Qformer.py. InstructBLIP (Dai et al. 2023), section 3.3, for `text`.
    """

    variant: Literal["stripped", "text", "full"] = "stripped"
    """stripped: queries only (BLIP-2 stage 2, MiniGPT-4). text: queries stand beside text (InstructBLIP). full: also
    predicts text (BLIP-2 stage 1)."""
    init: str | None = None
    """Hub id or folder of a BERT checkpoint that gives every weight but cross-attention and queries; the queries'
    feed-forward blocks start as copies of the text's. Null: random weights."""
    num_queries: int = 32
    """Q, and N"""
    width: int = 768
    """W, of the hidden states; a multiple of `num_heads`."""
    num_layers: int = 12
    num_heads: int = 12
    ffn_width: int = 3072
    """Inner width of the feed-forward blocks."""
    cross_every: int = 2
    """Layers 0, `cross_every`, 2 `cross_every`, ... attend to the features."""
    vocab_size: int = 30523
    """Rows of the word embedding: bert-base-uncased and `[DEC]`."""
    max_text_tokens: int = 512
    """Rows of the position embedding."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer (BERT's) of what `text` reads with an LLM: the user turn that shows the medium,
    as the template writes it up to the answer."""
    max_instruction_tokens: int = 128
    """Longest instruction, `[CLS]` and `[SEP]` included; a longer one loses its beginning, as published."""
    dropout: float = 0.1
    """Of hidden states and attention weights, 0 to 1."""
    initializer_range: float = 0.02
    """Standard deviation of random weights; BERT's 0.02 suits a width of 768, narrow ones learn faster from more."""

    def num_soft_tokens(self, encoder: EncoderSpec) -> int:
        return self.num_queries

    def soft_grid(self, encoder: EncoderSpec) -> tuple[int, int] | None:
        return None

    def instruction(self) -> InstructionSpec | None:
        """Source: InstructBLIP, section 3.3; LAVIS lavis/models/blip2_models/blip2_vicuna_instruct.py."""
        if self.tokenizer is None:
            return None
        return InstructionSpec(
            tokenizer=self.tokenizer, max_tokens=self.max_instruction_tokens, vocab_size=self.vocab_size
        )

    @property
    def has_text(self) -> bool:
        """Whether text can be read."""
        return self.variant != "stripped"

    @property
    def has_head(self) -> bool:
        """Whether text can be predicted."""
        return self.variant == "full"

    @property
    def trunk(self) -> str | None:
        """The child whose output the feature cache can keep where it is frozen; none where it reads text too."""
        return None if self.tokenizer else "qformer"

    def build(self, encoder: EncoderSpec, llm_width: int) -> QformerConnector:
        """Weights of `init` are read unless the module is made on the meta device."""
        self._check()
        self._check_instruction(llm_width)
        qformer = Qformer(self, encoder.width)
        if self.init is not None and not qformer.query_tokens.is_meta:
            take_bert(qformer, self, self.init)
        if not llm_width:
            return QformerConnector(qformer, None)
        return QformerConnector(qformer, nn.Linear(self.width, llm_width), self.tokenizer is not None)

    def _check(self) -> None:
        for name in ("num_queries", "num_layers", "num_heads", "ffn_width", "cross_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)}", expected="at least 1", where=f"connector.{name}")
        if self.width < 1 or self.width % self.num_heads:
            raise ConfigError(f"{self.width}", expected=f"a multiple of the {self.num_heads} heads",
                              where="connector.width")  # fmt: skip

    def _check_instruction(self, llm_width: int) -> None:
        """Raises ConfigError where an instruction cannot be read, or is missing in front of an LLM."""
        if self.tokenizer is None:
            if self.variant == "text" and llm_width:
                raise ConfigError("a Q-Former that reads the instruction has no tokenizer for it",
                                  expected="hub id or folder of BERT's tokenizer", where="connector.tokenizer",
                                  fix="connector.tokenizer=google-bert/bert-base-uncased; without text: "
                                      "connector=qformer")  # fmt: skip
            return
        if self.variant != "text":
            raise ConfigError(f"{self.tokenizer}, and variant {self.variant} reads no instruction", expected="null",
                              where="connector.tokenizer", fix="connector=qformer_text")  # fmt: skip
        if not 3 <= self.max_instruction_tokens <= self.max_text_tokens:
            raise ConfigError(f"{self.max_instruction_tokens}",
                              expected=f"3 to {self.max_text_tokens}, the positions of its text",
                              where="connector.max_instruction_tokens")  # fmt: skip


class QformerConnector(nn.Module):
    """See `QformerConfig`.

    Args:
        qformer: The Q-Former with its queries.
        proj: W -> D, or None where there is no LLM.
        reads_instruction: Whether its queries always stand beside text.
    """

    def __init__(self, qformer: Qformer, proj: nn.Linear | None, reads_instruction: bool = False) -> None:
        super().__init__()
        self.reads_instruction = reads_instruction
        self.qformer = qformer
        self.leaves_behind = qformer.leaves_behind
        if proj is not None:
            self.proj = proj

    def forward(self, features: Tensor, input_ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """float[M, P, E], perhaps with text int64[M, T] and bool[M, T], to float[M, Q, D] (W without an LLM).

        Raises:
            SpliceError: there is no text, and the queries were trained beside it.
        """
        if self.reads_instruction and input_ids is None:
            raise SpliceError("features without an instruction", expected="ids and mask of what the Q-Former reads",
                              where="connector", fix="batches of this plan's own processor and collator")  # fmt: skip
        return self.finish(self.qformer(features, input_ids, mask))

    def query_maps(self, features: Tensor, input_ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """As `forward`, to float32[M, layers, heads, Q, P]: each layer's cross-attention of queries to patches."""
        layers: Any = self.qformer.bert.encoder.layer
        attends = [layer.crossattention.self for layer in layers if hasattr(layer, "crossattention")]
        found: list[Tensor] = []
        with before_calls(attends, lambda attend, hidden, source, *_: found.append(attend.weights(hidden, source))):
            self(features, input_ids, mask)
        return torch.stack(found, 1)

    @property
    def trunk(self) -> nn.Module:
        """The Q-Former."""
        return self.qformer

    def finish(self, hidden: Tensor) -> Tensor:
        """float[M, Q, W] of the trunk to float[M, Q, D]."""
        return self.proj(hidden) if hasattr(self, "proj") else hidden


class Qformer(nn.Module):
    """Queries and text in one BERT, run in four ways; a key map from LAVIS replaces prefixes only.

    LAVIS writes two more names for the word embedding and the head's bias (`cls.predictions.decoder.*`); here the head
    is given the embedding at every call.

    Args:
        config: Sizes and variant.
        source_width: E.

    Raises:
        ConfigError: text is given to a stripped Q-Former, or words are asked from one without a head.
    """

    def __init__(self, config: QformerConfig, source_width: int) -> None:
        super().__init__()
        self.num_queries = config.num_queries
        text = _TEXT if not config.has_text else _HEAD
        self.leaves_behind = None if config.has_head else rf"qformer\.({text})\..*"
        """Names in the connector's weights that only a fuller variant has."""
        layers = [
            QformerLayer(
                config.width,
                config.ffn_width,
                config.num_heads,
                config.dropout,
                source_width if index % config.cross_every == 0 else None,
                config.has_text,
            )
            for index in range(config.num_layers)
        ]
        embeddings = Embeddings(
            config.width, config.vocab_size, config.max_text_tokens, config.dropout, config.has_text
        )
        self.query_tokens = nn.Parameter(
            torch.empty(1, config.num_queries, config.width).normal_(std=config.initializer_range)
        )
        self.bert = Bert(embeddings, Encoder(layers))
        if config.has_head:
            self.cls = Head(config.width, config.vocab_size)
        self.apply(partial(_init, std=config.initializer_range))

    def forward(self, features: Tensor, input_ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The queries' rows float[B, Q, W], alone or beside text."""
        if input_ids is None or mask is None:
            return self.look(features)[0]
        return self.look_and_read(features, input_ids, mask)[:, : self.num_queries]

    def look(self, features: Tensor) -> tuple[Tensor, list[KeyValue]]:
        """Queries alone: float[B, P, E] to float[B, Q, W], and per layer what `write` needs."""
        hidden = self.bert.embeddings(self.query_tokens.expand(len(features), -1, -1), None)
        return self.bert.encoder(hidden, self.num_queries, features, None)

    def read(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Text alone, all tokens see each other: int64[B, T] with bool[B, T] (false at padding) to float[B, T, W]."""
        self._require_text()
        hidden = self.bert.embeddings(None, input_ids)
        return self.bert.encoder(hidden, 0, None, additive(mask[:, None, None], hidden.dtype))[0]

    def look_and_read(self, features: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Queries and text, everybody sees everybody: to float[B, Q + T, W]; only queries see the features."""
        self._require_text()
        hidden = self.bert.embeddings(self.query_tokens.expand(len(features), -1, -1), input_ids)
        visible = torch.cat([mask.new_ones(len(mask), self.num_queries), mask], 1)
        bias = additive(visible[:, None, None], hidden.dtype)
        return self.bert.encoder(hidden, self.num_queries, features, bias)[0]

    def write(self, input_ids: Tensor, mask: Tensor, memory: list[KeyValue]) -> Tensor:
        """Text that sees all queries of `look` and what stands before it: to float[B, T, W].

        Equal to one pass in which queries cannot see text, since then they do not depend on it.
        Source: BLIP-2, figure 2, the multimodal causal mask.
        """
        self._require_text()
        hidden = self.bert.embeddings(None, input_ids)
        length = input_ids.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        text = before & mask[:, None, None]
        visible = torch.cat([text.new_ones(*text.shape[:3], self.num_queries), text], 3)
        return self.bert.encoder(hidden, 0, None, additive(visible, hidden.dtype), memory)[0]

    def words(self, hidden: Tensor) -> Tensor:
        """float[..., W] to logits float[..., V]."""
        if not hasattr(self, "cls"):
            raise _lacks("a head that predicts words", "connector=qformer_full")
        return self.cls(hidden, self.bert.embeddings.word_embeddings.weight)

    def _require_text(self) -> None:
        if not hasattr(self.bert.embeddings, "word_embeddings"):
            raise _lacks("text embeddings", "connector=qformer_text or connector=qformer_full")


def _lacks(what: str, fix: str) -> ConfigError:
    return ConfigError(f"this Q-Former has no {what}", expected="the variant that this run needs",
                       where="connector.variant", fix=fix)  # fmt: skip


def _init(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
