"""The contract of an LLM: the only part that knows a tokenizer, and that turns embeddings into text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmexp.contracts import LlmSpec
    from mmexp.llm.head import Head


class LlmConfig(Protocol):
    """One LLM as data. `spec` and `load_tokenizer` read no weights."""

    def spec(self) -> LlmSpec:
        """Width, vocabulary and longest sequence."""
        ...

    def load_tokenizer(self) -> Any:
        """The transformers tokenizer."""
        ...

    def build(self) -> nn.Module:
        """A module with the methods of `Llm`, weights loaded."""
        ...

    def empty(self) -> nn.Module:
        """The same module with random weights on the current default device; on `meta` it costs nothing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 64
    """Longest answer."""
    min_new_tokens: int = 0
    """Shortest answer: until then no token may end it."""
    num_beams: int = 1
    """Answers that are followed side by side (beam search); 1 takes the most likely token each time."""
    length_penalty: float = 1.0
    """With beams, an answer's log-probability is divided by its length to this power: below 0 prefers short ones."""
    temperature: float = 0.0
    """0 takes the most likely token; higher is more random."""
    top_p: float = 1.0
    """Nucleus sampling: only the most likely tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that were already said less likely."""
    stop: str | None = None
    """Text that ends an answer, besides the end-of-sequence token (the plain template ends with a newline)."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer; empty takes the tokenizer's end of sequence."""
    seed: int | None = None
    """Makes sampling repeatable."""


class Beginning(NamedTuple):
    """What several of B prompts have in common: their first columns."""

    num_columns: int
    """Columns of every prompt that are its beginning; padding stands on their left."""
    first: Tensor
    """int64[G], for each of the different beginnings a prompt that has it"""
    owners: Tensor
    """int64[B], for each prompt which of the G beginnings it has"""


class Watch(Protocol):
    """Sees every step in which B answers are made, and may end any of them."""

    def look(self, scores: Tensor) -> None:
        """float[B, V], from which the next tokens are about to be chosen."""
        ...

    def take(self, ids: Tensor) -> Tensor:
        """int64[B], the tokens that were chosen (of an ended answer any), to bool[B], which answers end with them."""
        ...


class Llm(Protocol):
    """What the rest of mmexp may call on a built LLM."""

    def embed(self, input_ids: Tensor) -> Tensor:
        """int64[B, T] to float[B, T, D]."""
        ...

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor,
        segment_lengths: Sequence[Sequence[int]],
        prompt_lengths: Sequence[Sequence[int]],
        rows: Tensor | None = None,
        followers: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        """float[B, T, D] to the last hidden states float[B, T, D], each of which predicts the token behind it.

        With `rows`, int64[K] ascending places in the flattened batch that are no padding, only theirs, float[K, D]; an
        LLM that can then leaves out what nobody uses.

        Attention stays inside segments. `prompt_lengths` says, per row and segment, how many positions stand in front
        of the first target: an encoder-decoder reads them with its encoder, a decoder-only LLM has no use for it.
        `followers` is as in `Batch`, for an LLM that shares beginnings.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """float[..., D] to float[..., V]."""
        ...

    @property
    def head(self) -> Head:
        """How the logits are made, for a loss that does not hold them all."""
        ...

    @property
    def shares_beginnings(self) -> bool:
        """Whether prompts that begin alike can be answered with that beginning computed once."""
        ...

    def add_tokens(self, first: int, count: int) -> None:
        """Gives new tokens, with the ids from `first` on, rows of their own (see `mmexp.llm.rows`)."""
        ...

    def generate(
        self,
        embeds: Tensor,
        mask: Tensor,
        tokenizer: Any,
        sampling: Sampling,
        on_text: Callable[[str], None] | None = None,
        beginning: Beginning | None = None,
        watch: Watch | None = None,
    ) -> list[str]:
        """Answers to B prompts, float[B, T, D] left-padded with `mask` int64[B, T]; `on_text` gets text as it comes.

        With `beginning`, both pieces of each prompt are left-padded, and what is common is computed once. `watch` goes
        without beams; only a server asks for it.
        """
        ...
