"""Writes a trained part of the shapes world as a transformers checkpoint in half precision.

    PYTHONPATH=experiments/oracle python experiments/export_parts.py RUN OUT

RUN is a finished run of `experiments=shapes_vision` or `experiments=shapes_language`. What it did not load (tokenizer,
normalisation, layers behind the one that is used) is taken over from the folder that it started from.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from mmexp.assemble import experiment_of_run, finished_run
from mmexp.config import conf_dir, registered_targets
from mmexp.engine import load_weights

KEPT = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


def main(run: str, out: str) -> None:
    """Exports the part that the run trained."""
    exp = experiment_of_run(run, registered_targets([conf_dir(), Path(__file__).with_name("oracle")]))
    model = exp.plan.build()
    load_weights(model.parts(), finished_run(run, "run"))
    name = {"vision": "encoder", "language": "llm"}[exp.checked.spine.stage.name]
    model.parts()[name].model.half().save_pretrained(out)
    start = Path(exp.checked.parts[name].path)
    weights = Path(out) / "model.safetensors"
    unused = {key: value.half() for key, value in load_file(start / weights.name).items()}
    save_file(unused | load_file(weights), weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    for file in KEPT:
        if (start / file).is_file():
            shutil.copy(start / file, out)


if __name__ == "__main__":
    main(*sys.argv[1:3])
