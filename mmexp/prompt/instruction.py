"""What a connector reads beside a medium: the words of the turn that shows it, in the connector's own tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmexp.contracts import InstructionSpec, Turn
from mmexp.errors import ConfigError
from mmexp.prompt.tokenizer import private_copy

if TYPE_CHECKING:
    from mmexp.prompt.template import ChatTemplate


class InstructionTokenizer:
    """Words to ids, between the marks that the tokenizer itself puts around a text (BERT's `[CLS]` and `[SEP]`).

    An over-long text loses its beginning. Special tokens in the words stay words.
    Source: salesforce/LAVIS @ 506965b lavis/models/blip2_models/blip2_vicuna_instruct.py (`truncation_side="left"`).

    Args:
        tokenizer: A fast tokenizer of transformers, kept as `hf` for exports.
        spec: The limits.

    Raises:
        ConfigError: it is not fast, or has more tokens than the connector has rows for.
    """

    # Any: transformers' tokenizer classes share no useful static type
    def __init__(self, tokenizer: Any, spec: InstructionSpec) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(f"the tokenizer {type(tokenizer).__name__} has no fast backend",
                              expected="a folder with tokenizer.json", where="connector.tokenizer")  # fmt: skip
        num_tokens = backend.get_vocab_size(with_added_tokens=True)
        if num_tokens > spec.vocab_size:
            raise ConfigError(f"{spec.tokenizer} has {num_tokens} tokens",
                              expected=f"at most {spec.vocab_size}, the rows of the connector's word embedding",
                              where="connector.tokenizer", fix=f"connector.vocab_size={num_tokens}")  # fmt: skip
        self.hf, self.spec = tokenizer, spec
        self._backend = private_copy(backend.to_str())
        self._backend.enable_truncation(spec.max_tokens, direction="left")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As `SegmentTokenizer.__setstate__`."""
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True

    def encode(self, text: str) -> tuple[int, ...]:
        """At most `max_tokens` ids."""
        return tuple(self._backend.encode(text).ids)


def instruction_of(turn: Turn, template: ChatTemplate, key: str) -> str:
    """The words of a user turn as the template writes them up to the answer, without any system text.

    Neither an answer nor a later turn is in it, so that soft tokens are the same in training and when an answer is
    asked for.

    Args:
        turn: One that shows a medium; its boxes are written relative to what the encoder sees.
        template: As the LLM reads it.
        key: The sample's id.
    """
    segments = replace(template, default_system=None).render([turn], generation_prompt=True, key=key)
    return "".join(segment.text for segment in segments)
