"""Writes trained parts of the shapes world as transformers checkpoints in half precision.

python experiments/export_parts.py RUN_OF_VISION RUN_OF_LANGUAGE OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from mmexp.assemble import experiment_of_run, finished_run
from mmexp.config import conf_dir, registered_targets
from mmexp.engine import load_weights


def load(path: str) -> torch.nn.Module:
    """The model of a finished run."""
    exp = experiment_of_run(path, registered_targets([conf_dir()]))
    model = exp.plan.build()
    load_weights(model.parts(), finished_run(path, "run"))
    return model


def main(vision_run: str, language_run: str, out: str) -> None:
    """Exports both parts, with the tokenizer and the normalisation that they were trained with."""
    vision, language = load(vision_run), load(language_run)
    vision.inputs["image"].encoder.model.half().save_pretrained(Path(out) / "vision")
    transform = experiment_of_run(vision_run, registered_targets([conf_dir()])).plan.transforms["image"]
    card = {"image_mean": list(transform.mean), "image_std": list(transform.std), "size": transform.size_px}
    (Path(out) / "vision" / "preprocessor_config.json").write_text(json.dumps(card, indent=2) + "\n")
    language.llm.model.half().save_pretrained(Path(out) / "language")
    experiment_of_run(language_run, registered_targets([conf_dir()])).plan.hf_tokenizer.save_pretrained(
        Path(out) / "language"
    )


if __name__ == "__main__":
    main(*sys.argv[1:4])
