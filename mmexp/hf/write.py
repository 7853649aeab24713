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
from mmexp.hf.verify import Agreement, compare, take_probes, tolerance_of

if TYPE_CHECKING:
    from mmexp.hf.form import Form
    from mmexp.model import MultimodalModel, Plan


class Export:
    """One export: `check` before weights are read, then `write`.

    Args:
        plan: Of the model. One with a Q-Former becomes BLIP-2, any other LLaVA.
        out: New folder.
    """

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.partial = out.with_name(f".{out.name}.unverified")
        self.form = _form_of(plan)

    def check(self) -> None:
        """Raises ConfigError with every reason why transformers cannot hold the model, or `out` cannot be written."""
        found: list[Any] = list(self.form.refusals())
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            found.append(ConfigError(f"{self.out} exists", expected="a new or empty folder", where="out"))
        if found:
            raise ConfigError.collect(found)

    def write(
        self, model: MultimodalModel, questions: Sequence[tuple[Turn, ...]], lineage: Sequence[Mapping[str, Any]]
    ) -> Agreement:
        """Writes the folder beside its place, compares, and moves it there.

        Args:
            model: In eval mode on the CPU, adapters folded in. Its memory is given back before transformers loads.
            questions: Conversations that end with a user turn and show a picture.
            lineage: Manifests for the model card, the newest first.

        Raises:
            CheckpointError: transformers gives something else; the folder stays for a look under its temporary name.
        """
        if self.partial.exists():
            raise CheckpointError(f"{self.partial} is in the way", where="out", fix="remove it, or give another folder")
        tolerance = tolerance_of(model)
        probes = take_probes(self.plan, self.form, model, questions)
        self.partial.mkdir(parents=True)
        self.form.write(model, self.partial)
        for part in model.parts().values():
            part.to("meta")
        gc.collect()
        agreement = compare(self.partial, self.form, probes, self.plan.template.stop, tolerance)
        card = render_card(self.plan, self.form, agreement, lineage)
        (self.partial / "README.md").write_text(card, encoding="utf-8")
        if self.out.exists():
            self.out.rmdir()
        self.partial.rename(self.out)
        return agreement


def _form_of(plan: Plan) -> Form:
    image = plan.inputs.get("image")
    return Blip2Form(plan) if image and isinstance(image.connector, QformerConfig) else LlavaForm(plan)
