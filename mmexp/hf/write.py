"""Writes a whole LLaVA folder, and calls it done only after transformers gave the same logits and answers."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.connector import MlpConfig
from mmexp.contracts import Turn
from mmexp.errors import CheckpointError, ConfigError
from mmexp.hf.base import common_dtype, save_state
from mmexp.hf.card import export_notes, render_card
from mmexp.hf.llava import feature_strategy, llava_config, llava_state, refusals, require_complete
from mmexp.hf.processor import Words, build_generation_config, build_processor, build_words
from mmexp.hf.verify import Agreement, compare, take_probes, tolerance_of

if TYPE_CHECKING:
    from mmexp.model import MultimodalModel, Plan


class LlavaExport:
    """One export: `check` before weights are read, then `write`.

    Args:
        plan: Of the model.
        out: New folder.
    """

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.partial = out.with_name(f".{out.name}.unverified")

    def check(self) -> None:
        """Raises ConfigError with every reason why transformers cannot hold the model, or `out` cannot be written."""
        found: list[Any] = list(refusals(self.plan))
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            found.append(ConfigError(f"{self.out} exists", expected="a new or empty folder", where="out"))
        try:
            build_words(self.plan)
        except ConfigError as error:
            found.append(error)
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
        words = build_words(self.plan)
        tolerance = tolerance_of(model)
        probes = take_probes(self.plan, model, questions)
        self._write_files(model, words)
        for part in model.parts().values():
            part.to("meta")
        gc.collect()
        agreement = compare(self.partial, probes, self.plan.template.stop, tolerance)
        connector = self.plan.inputs["image"].connector
        notes = export_notes(self.plan, is_linear=not (isinstance(connector, MlpConfig) and connector.depth == 2))
        card = render_card(self.plan, agreement, lineage, notes)
        (self.partial / "README.md").write_text(card, encoding="utf-8")
        if self.out.exists():
            self.out.rmdir()
        self.partial.rename(self.out)
        return agreement

    def _write_files(self, model: MultimodalModel, words: Words) -> None:
        config: Any = llava_config(self.plan, model, words.image_token_id)
        state = llava_state(self.plan, model, config.text_config.vocab_size)
        require_complete(state, config)
        if self.partial.exists():
            raise CheckpointError(f"{self.partial} is in the way", where="out", fix="remove it, or give another folder")
        self.partial.mkdir(parents=True)
        save_state(state, self.partial, common_dtype(state.values()))
        config.save_pretrained(self.partial)
        encoder: Any = model.inputs["image"].encoder
        processor = build_processor(self.plan, words, encoder.model.config, feature_strategy(encoder))
        processor.save_pretrained(self.partial)
        processor.image_processor.save_pretrained(self.partial)
        build_generation_config(words).save_pretrained(self.partial)
