"""Who corrects a generated description: the contract, the published prompt, and a language model of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mmexp import hub
from mmexp.errors import CheckpointError, ConfigError

PROMPT = (
    "Fix the error in the given paragraph. Remove any repeating sentences, meaningless characters, not English "
    "sentences, and so on. Remove unnecessary repetition. Rewrite any incomplete sentences. Return directly the "
    "results without explanation. Return directly the input paragraph if it is already correct without explanation."
)
"""Source: MiniGPT-4 (Zhu et al. 2023), section 3.2, data post-processing."""
PROBE = "A brown dog runs over the grass. A brown dog runs over the grass."
"""What a rewriter is tried with before anything long begins."""


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """What came back for one text."""

    text: str = ""
    is_cut: bool = False
    """Whether the answer was stopped by its limit of tokens."""
    failure: str | None = None
    """Why there is no text."""


class Rewriter(Protocol):
    """Corrects texts."""

    batch_size: int
    """How many texts it is best given at once."""

    def rewrite(self, texts: Sequence[str]) -> list[Rewritten]:
        """One result a text, in order. Trouble with one text is its `failure`.

        Raises:
            DataError: no text can be rewritten until the user changes something.
        """
        ...


class RewriterConfig(Protocol):
    """A rewriter as data, a choice of the group `rewrite`."""

    def build(self) -> Rewriter:
        """Ready to rewrite."""
        ...

    def check(self) -> None:
        """Finds out early and cheaply whether it will work.

        Raises:
            MmexpError: it will not.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LocalRewriterConfig:
    """A causal LM of transformers with instructions learned, in this process; greedy."""

    path: str
    """Hub id or folder."""
    prompt: str = PROMPT
    """Stands before the description."""
    max_new_tokens: int = 512
    """Longest answer."""
    batch_size: int = 8
    """Descriptions that it rewrites at once."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """How its weights are stored; auto as in the checkpoint."""

    def check(self) -> None:
        """Raises ConfigError when a number is wrong or there is no such checkpoint."""
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)}", expected="at least 1", where=f"rewrite.{name}")
        hub.read_config(self.path, None, "rewrite.path")

    def build(self) -> LocalRewriter:
        """Reads tokenizer and weights.

        Raises:
            CheckpointError: they cannot be read, or are no causal LM.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.check()
        source = hub.resolve(self.path, "rewrite.path")
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
            model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=self.dtype)
        except (OSError, ValueError) as error:
            raise hub.unavailable(source, error, "rewrite", CheckpointError) from error
        return LocalRewriter(self, tokenizer, model.eval().to("cuda" if torch.cuda.is_available() else "cpu"))


class LocalRewriter:
    """See `LocalRewriterConfig`.

    Args:
        config: The settings.
        tokenizer: Pads on the left.
        model: In eval mode, on its device.
    """

    # Any: transformers' classes share no useful static type
    def __init__(self, config: LocalRewriterConfig, tokenizer: Any, model: Any) -> None:
        self.config, self.tokenizer, self.model = config, tokenizer, model
        self.batch_size = config.batch_size
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    def rewrite(self, texts: Sequence[str]) -> list[Rewritten]:
        """See `Rewriter`."""
        import torch

        batch = self._prompts(texts).to(self.model.device)
        with torch.inference_mode():
            ids = self.model.generate(**batch, do_sample=False, max_new_tokens=self.config.max_new_tokens,
                                      pad_token_id=self.tokenizer.pad_token_id)  # fmt: skip
        answers = ids[:, batch["input_ids"].shape[1] :].tolist()
        said = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [
            Rewritten(text=text.strip(), is_cut=not self._ends & set(answer))
            for text, answer in zip(said, answers, strict=True)
        ]

    @property
    def _ends(self) -> set[int]:
        end = self.model.generation_config.eos_token_id
        return set(end) if isinstance(end, list) else {end}

    def _prompts(self, texts: Sequence[str]) -> Any:
        """Token ids; with the tokenizer's chat template where it has one."""
        asked = [f"{self.config.prompt}\n\n{text}" for text in texts]
        if not self.tokenizer.chat_template:
            return self.tokenizer([f"{text}\n\n" for text in asked], return_tensors="pt", padding=True)
        chats = [[{"role": "user", "content": text}] for text in asked]
        return self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        )
