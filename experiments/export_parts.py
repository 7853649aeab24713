"""Writes a trained part of the shapes world as a transformers checkpoint in half precision.

    python experiments/export_parts.py RUN OUT

RUN is a finished run of `experiments=shapes_vision` or `experiments=shapes_language`. What is no weight (tokenizer,
normalisation) is taken over from the folder that the run started from.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from mmexp.assemble import experiment_of_run, finished_run
from mmexp.config import conf_dir, registered_targets
from mmexp.engine import load_weights

KEPT = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


def main(run: str, out: str) -> None:
    """Exports the part that the run trained."""
    exp = experiment_of_run(run, registered_targets([conf_dir()]))
    model = exp.plan.build()
    load_weights(model.parts(), finished_run(run, "run"))
    name = {"vision": "encoder", "language": "llm"}[exp.checked.spine.stage.name]
    model.parts()[name].model.half().save_pretrained(out)
    for file in KEPT:
        source = Path(exp.checked.parts[name].path) / file
        if source.is_file():
            shutil.copy(source, out)


if __name__ == "__main__":
    main(*sys.argv[1:3])
