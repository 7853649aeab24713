"""What every form of an export has: a public class of transformers that can hold a plan, or says why it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.contracts import Item, Turn
    from mmexp.model import MultimodalModel


class Form(Protocol):
    """One public class, and what its folder holds. Nothing but `write` reads weights."""

    auto: ClassVar[str]
    """The Auto class that loads it."""
    tag: ClassVar[str]
    """Of the model card."""
    task: ClassVar[str]
    """The hub's name of what the model does."""

    def refusals(self) -> list[ConfigError]:
        """Why the class cannot hold the plan, part by part; empty when it can."""
        ...

    def write(self, model: MultimodalModel, folder: Path) -> None:
        """Weights, configs, tokenizer and processor."""
        ...

    def take(self, model: MultimodalModel, asked: Sequence[tuple[Turn, ...]]) -> Any:
        """What our model, in eval mode on the CPU, makes of conversations with one picture each."""
        ...

    def compare(self, folder: Path, probes: Any, tolerance: float) -> Comparison:
        """The same of the folder alone, read by transformers; CheckpointError where it differs from `take`'s result."""
        ...

    def use(self) -> str:
        """Python lines for the card."""
        ...

    def notes(self) -> list[str]:
        """What is different on the side of transformers, in sentences."""
        ...


class AnswerForm(Form, Protocol):
    """A class that answers: what a comparison of answers needs besides."""

    @property
    def image_token_id(self) -> int:
        """The placeholder in `input_ids`."""
        ...

    def prompt(self, turns: Sequence[Turn], name: str) -> Item:
        """A conversation as our model reads it before it answers."""
        ...

    def inputs(self, processor: Any, turns: Sequence[Turn]) -> Any:
        """The same as the exported processor makes it, batched."""
        ...

    def run(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Soft tokens float[1, N, D] and logits float[1, T, V] of the exported model."""
        ...


class Comparison(Protocol):
    """The largest differences that were found, all of them within the tolerance."""

    def table(self) -> dict[str, str | int]:
        """Rows of the model card."""
        ...

    def summary(self) -> str:
        """One line."""
        ...


def refusal(cls: str, found: str, expected: str, where: str) -> ConfigError:
    """The error for something that a public class cannot hold."""
    return ConfigError(f"{found}, which {cls} cannot hold", expected=expected, where=where,
                       fix="chat and evaluate read the run directory itself")  # fmt: skip
