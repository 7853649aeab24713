"""Run directories with known figures, as `mmexp.train` leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG: dict[str, Any] = {
    "name": "default",
    "seed": 0,
    "paths": {"outputs": "outputs", "shapes": "/cache/a/shapes"},
    "stage": {"name": "align", "lr": 0.002, "batch_size": 8, "init_from": None, "twin": {"lr": 1}},
    "connector": {"_target_": "mmexp.connector.MlpConfig", "depth": 1},
    "data": {"_target_": "mmexp.data.LlavaJsonConfig", "path": "/cache/a/shapes/align.json"},
    "trainer": {"max_steps": 40},
    "logger": {},
}
MLP2X = {"connector": {"_target_": "mmexp.connector.MlpConfig", "depth": 2}}


def make_run(
    folder: Path,
    scores: Sequence[float] = (1, 0, 1, 1),
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    status: str = "finished",
    answers: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    step_s: float = 0.5,
    image: str | None = None,
) -> Path:
    """Writes a run of 40 steps that logs every 10th, and answered one benchmark with `scores`."""
    (folder / "predictions").mkdir(parents=True)
    content = CONFIG | {"seed": seed} | dict(config or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "overrides.txt").write_text("".join(f"{text}\n" for text in [*overrides, f"seed={seed}"]))
    derived = {"soft_tokens": {"image": 36}}
    (folder / "manifest.json").write_text(json.dumps({"status": status, "seed": seed, "derived": derived}))
    rows = [
        {"step": step, "train/loss": 4 / step, "time/step_s": step_s, "memory/peak_gb": 0.5 + step / 100,
         "data/tokens_per_s": 100.0, "data/samples_per_s": 16.0, "data/media_per_s": 16.0}
        for step in (10, 20, 30, 40)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {"exact_match": sum(scores) / len(scores), "blind": 0.1, "f1": 0.5, "num_samples": len(scores)}
    (folder / "results.json").write_text(json.dumps({"heldout": {"vqa": metrics}}))
    names = ids or [f"s{at}" for at in range(len(scores))]
    lines = [
        {"id": name, "prompt": f"question {name}?", "prediction": answers[at] if answers else f"answer {score}",
         "target": f"target {name}", "score": score, "type": "colour" if at % 2 else "shape", "image": image}
        for at, (name, score) in enumerate(zip(names, scores, strict=True))
    ]  # fmt: skip
    (folder / "predictions" / "heldout_vqa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
