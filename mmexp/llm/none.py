"""No LLM: a stage that trains encoder and connector alone still needs a tokenizer, and nothing else of an LLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn

from mmexp import hub
from mmexp.contracts import LlmSpec
from mmexp.errors import ConfigError
from mmexp.llm.base import Beginning, Sampling, Watch
from mmexp.llm.checkpoint import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NoLlmConfig:
    """Lends a tokenizer. The width is 0, which tells connectors that their soft tokens go nowhere."""

    tokenizer: str
    """Hub id or folder of the tokenizer."""
    bos_token: str | None = None
    """Special token that is added where the tokenizer lacks it, and that begins a text; null changes nothing."""
    new_tokens: tuple[str, ...] = ()
    """Further special tokens that the template writes, for a tokenizer that lacks them."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""

    def spec(self) -> LlmSpec:
        known = None if hub.is_local(self.tokenizer) else hub.published().get(self.tokenizer)
        num_added = len(self.new_tokens) + (self.bos_token is not None)
        num_tokens = known["vocab_size"] + num_added if known else len(self.load_tokenizer())
        return LlmSpec(width=0, vocab_size=num_tokens, max_length_tokens=2**31 - 1, model_type="no LLM")

    def load_tokenizer(self) -> Any:
        tokenizer = load_tokenizer(self.tokenizer, self.revision)
        tokenizer.add_tokens(list(self.new_tokens), special_tokens=True)
        if self.bos_token is not None:
            tokenizer.add_special_tokens({"bos_token": self.bos_token})
        return tokenizer

    def build(self) -> NoLlm:
        return NoLlm()

    def empty(self) -> NoLlm:
        """The same module: it has no weights."""
        return NoLlm()


class NoLlm(nn.Module):
    """Stands where an LLM would; whatever asks it for something gets a ConfigError."""

    def embed(self, input_ids: Tensor) -> Tensor:
        _refuse()

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor,
        segment_lengths: Sequence[Sequence[int]],
        prompt_lengths: Sequence[Sequence[int]] = (),
        rows: Tensor | None = None,
        followers: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        _refuse()

    def logits(self, hidden: Tensor) -> Tensor:
        _refuse()

    @property
    def shares_beginnings(self) -> bool:
        return False

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
        _refuse()


def _refuse() -> NoReturn:
    raise ConfigError(
        "this model has no LLM",
        expected="an objective and benchmarks that do without one",
        where="llm",
        fix="llm=vicuna7b (or another), objective=blip2_represent, or evaluation=retrieval",
    )
