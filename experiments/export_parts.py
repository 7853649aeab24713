"""Writes a trained part of the shapes world in half precision, as it ships with the package.

    PYTHONPATH=experiments/oracle python experiments/export_parts.py RUN OUT

RUN is a finished run. Of `experiments=shapes_vision` or `experiments=shapes_language` the encoder or LLM becomes a
transformers checkpoint; what the run did not load (tokenizer, normalisation, layers behind the one that is used) is
taken over from the folder that it started from. Of `stage=blip2/represent` or `blip2/generate` the Q-Former that
`connector=qformer` takes becomes a folder for `stage.init_from`.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mmexp.assemble import Experiment, experiment_of_run, finished_run
from mmexp.config import conf_dir, registered_targets
from mmexp.engine import RunDir, load_weights
from mmexp.engine.manifest import sha256

KEPT = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
PARTS = {"vision": "encoder", "language": "llm", "blip2_represent": "connector", "blip2_generate": "connector"}
FACTS = ("name", "stage", "kind", "seed", "step", "base", "versions")
"""What the manifest of a Q-Former keeps of the run's."""


def main(run: str, out: str) -> None:
    """Exports the part that the run trained."""
    exp = experiment_of_run(run, registered_targets([conf_dir(), Path(__file__).with_name("oracle")]))
    name = PARTS[exp.checked.spine.stage.name]
    if name == "connector":
        write_qformer(exp, finished_run(run, "run"), RunDir(Path(out)))
    else:
        write_model(exp, finished_run(run, "run"), name, Path(out))


def write_model(exp: Experiment, run: RunDir, name: str, out: Path) -> None:
    """An encoder or LLM in the format of the checkpoint that it started from."""
    model = exp.plan.build()
    load_weights(model.parts(), run)
    whole: Any = model.parts()[name].model
    whole.half().save_pretrained(out)
    start = Path(exp.checked.parts[name].path)
    weights = out / "model.safetensors"
    unused = {key: value.half() for key, value in load_file(start / weights.name).items()}
    save_file(unused | load_file(weights), weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    for file in KEPT:
        if (start / file).is_file():
            shutil.copy(start / file, out)


def write_qformer(exp: Experiment, run: RunDir, out: RunDir) -> None:
    """The queries' side of a Q-Former, in the layout of a finished run."""
    with torch.device("meta"):
        stripped = replace(exp.checked.parts["connector"], variant="stripped", init=None)
        names = stripped.build(exp.plan.inputs["image"].encoder.spec(), 0).state_dict()
    tensors = load_file(run.weights / "connector.safetensors")
    out.weights.mkdir(parents=True, exist_ok=True)
    file = out.weights / "connector.safetensors"
    save_file({name: tensors[name].half() for name in names}, file, metadata={"format": "pt"})
    file.chmod(0o644)
    entry = {"part": "connector", "kind": "full", "files": {str(file.relative_to(out.path)): sha256(file)}}
    manifest = run.manifest()
    out.update_manifest(status="finished", **{key: manifest.get(key) for key in FACTS}, weights=[entry])


if __name__ == "__main__":
    main(*sys.argv[1:3])
