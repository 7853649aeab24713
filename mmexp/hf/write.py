"""Writes a whole folder of transformers, and calls it done only after that gave the same logits and answers."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.connector import QformerConfig
from mmexp.contracts import Turn
from mmexp.errors import CheckpointError, ConfigError
from mmexp.hf.blip2_form import Blip2Form
from mmexp.hf.card import render_card
from mmexp.hf.llava_form import LlavaForm
from mmexp.hf.retrieval_form import RetrievalForm
from mmexp.hf.verify import tolerance_of

if TYPE_CHECKING:
    from torch import nn

    from mmexp.hf.form import Comparison, Form
    from mmexp.model import MultimodalModel, Plan


class Export:
    """One export: `check` before weights are read, then `write`.

    Args:
        plan: Of the model. One without an LLM becomes BLIP-2's model of scores, one with a Q-Former BLIP-2 or
            InstructBLIP, any other LLaVA.
        out: New folder.
        heads: Of a model without an LLM, the objective that trained it, by `write` with its weights.
    """

    def __init__(self, plan: Plan, out: Path, heads: nn.Module | None = None) -> None:
        self.plan, self.out = plan, out
        self.partial = out.with_name(f".{out.name}.unverified")
        self.form = _form_of(plan, heads)

    def check(self) -> None:
        """Raises ConfigError with every reason why transformers cannot hold the model, or `out` cannot be written."""
        found: list[Any] = list(self.form.refusals())
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            found.append(ConfigError(f"{self.out} exists", expected="a new or empty folder", where="out"))
        if found:
            raise ConfigError.collect(found)

    def write(
        self, model: MultimodalModel, asked: Sequence[tuple[Turn, ...]], lineage: Sequence[Mapping[str, Any]]
    ) -> Comparison:
        """Writes the folder beside its place, compares, and moves it there.

        Args:
            model: In eval mode on the CPU, adapters folded in. Its memory is given back before transformers loads.
            asked: Conversations that show one picture each. They end with a user turn, without an LLM with an answer.
            lineage: Manifests for the model card, the newest first.

        Raises:
            CheckpointError: transformers gives something else; the folder stays for a look under its temporary name.
        """
        if self.partial.exists():
            raise CheckpointError(f"{self.partial} is in the way", where="out", fix="remove it, or give another folder")
        tolerance = tolerance_of(model)
        probes = self.form.take(model, asked)
        self.partial.mkdir(parents=True)
        self.form.write(model, self.partial)
        for part in model.parts().values():
            part.to("meta")
        gc.collect()
        agreement = self.form.compare(self.partial, probes, tolerance)
        card = render_card(self.plan, self.form, agreement, lineage)
        (self.partial / "README.md").write_text(card, encoding="utf-8")
        if self.out.exists():
            self.out.rmdir()
        self.partial.rename(self.out)
        return agreement


def _form_of(plan: Plan, heads: nn.Module | None) -> Form:
    image = plan.inputs.get("image")
    if not plan.spec.width:
        return RetrievalForm(plan, heads)
    return Blip2Form(plan) if image and isinstance(image.connector, QformerConfig) else LlavaForm(plan)
