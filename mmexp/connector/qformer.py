"""The Q-Former of BLIP-2: learned queries read an image's features, with or without text beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mmexp import hub
from mmexp.connector.qformer_layers import Bert, Embeddings, Encoder, Head, KeyValue, QformerLayer
from mmexp.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.contracts import EncoderSpec

_HEAD = r"cls"
_TEXT = r"cls|bert\.embeddings\.(word|position)_embeddings|bert\.encoder\.layer\.\d+\.(intermediate|output)"
"""What the variants lack: the head, and with it all that is text's own."""
_BERT_NAMES = {"width": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
               "ffn_width": "intermediate_size"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class QformerConfig:
    """Q-Former, then a linear layer W -> D where there is an LLM; N is the number of queries.

    Source: BLIP-2 (Li et al. 2023), section 3.1 and figure 2; parameter names and numerics as salesforce/LAVIS
    @ 506965b lavis/models/blip2_models/Qformer.py. InstructBLIP (Dai et al. 2023), section 3.3, for `text`.
    """

    variant: Literal["stripped", "text", "full"] = "stripped"
    """stripped: queries only (BLIP-2 stage 2, MiniGPT-4). text: queries may stand beside text (InstructBLIP). full:
    also predicts text (BLIP-2 stage 1)."""
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
    dropout: float = 0.1
    """Of hidden states and attention weights, 0 to 1."""
    initializer_range: float = 0.02
    """Standard deviation of random weights; BERT's 0.02 suits a width of 768, narrow ones learn faster from more."""

    def num_soft_tokens(self, encoder: EncoderSpec) -> int:
        return self.num_queries

    def soft_grid(self, encoder: EncoderSpec) -> tuple[int, int] | None:
        return None

    @property
    def has_text(self) -> bool:
        """Whether text can be read."""
        return self.variant != "stripped"

    @property
    def has_head(self) -> bool:
        """Whether text can be predicted."""
        return self.variant == "full"

    def build(self, encoder: EncoderSpec, llm_width: int) -> QformerConnector:
        """Weights of `init` are read unless the module is made on the meta device."""
        self._check()
        qformer = Qformer(self, encoder.width)
        if self.init is not None and not qformer.query_tokens.is_meta:
            _take_bert(qformer, self, self.init)
        return QformerConnector(qformer, nn.Linear(self.width, llm_width) if llm_width else None)

    def _check(self) -> None:
        for name in ("num_queries", "num_layers", "num_heads", "ffn_width", "cross_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)}", expected="at least 1", where=f"connector.{name}")
        if self.width < 1 or self.width % self.num_heads:
            raise ConfigError(f"{self.width}", expected=f"a multiple of the {self.num_heads} heads",
                              where="connector.width")  # fmt: skip


class QformerConnector(nn.Module):
    """See `QformerConfig`.

    Args:
        qformer: The Q-Former with its queries.
        proj: W -> D, or None where there is no LLM.
    """

    def __init__(self, qformer: Qformer, proj: nn.Linear | None) -> None:
        super().__init__()
        self.qformer = qformer
        self.leaves_behind = qformer.leaves_behind
        if proj is not None:
            self.proj = proj

    def forward(self, features: Tensor, input_ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """float[M, P, E], perhaps with text int64[M, T] and bool[M, T], to float[M, Q, D] (W without an LLM)."""
        hidden = self.qformer(features, input_ids, mask)
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


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """bool to 0 where something is seen and a very negative number where not."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def _lacks(what: str, fix: str) -> ConfigError:
    return ConfigError(f"this Q-Former has no {what}", expected="the variant that this run needs",
                       where="connector.variant", fix=fix)  # fmt: skip


def _init(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _take_bert(qformer: Qformer, config: QformerConfig, path: str) -> None:
    """Copies what BERT has; a word embedding with more rows keeps its further rows as they are.

    Raises:
        CheckpointError: there is no such checkpoint, or it is of another size.
    """
    from transformers import BertForMaskedLM

    source = hub.resolve(path, "connector.init")
    card = hub.read_config(path, None, "connector.init")
    wrong = [f"{theirs} {card.get(theirs)}, here {getattr(config, ours)}" for ours, theirs in _BERT_NAMES.items()
             if card.get(theirs) != getattr(config, ours)]  # fmt: skip
    if wrong:
        raise CheckpointError("; ".join(wrong), expected="a BERT of the Q-Former's size", where="connector.init")
    try:
        bert: Any = BertForMaskedLM.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise hub.unavailable(source, error, "connector.init", CheckpointError) from error
    theirs = bert.state_dict()
    with torch.no_grad():
        for name, tensor in qformer.state_dict().items():
            twin = name.replace("intermediate_query", "intermediate").replace("output_query", "output")
            given = theirs.get(twin)
            if given is not None:
                rows = tensor if given.shape == tensor.shape else tensor[: len(given)]
                rows.copy_(given[: len(rows)])
