"""Real commands on one GPU with LLaVA-1.5 at its published size: what they take, beside what the doctor says. Called by
`gpu.py`.

Weights are random, in the files that `from_pretrained` reads; pictures and conversations are real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from gpu_steps import SHAPES

VICUNA, CLIP = "lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336"
SMALL = "small/llama"


class Job(NamedTuple):
    """One run: a stage of LLaVA-1.5 and what differs from it."""

    stage: str
    rows: str
    overrides: tuple[str, ...] = ()


RECOMPUTE = "trainer.gradient_checkpointing=[llm]"
RUNS = {
    "7B, stage 1, micro-batches of 16": Job("align", "pretrain", ("stage.micro_batch_size=16", "llm.dtype=bfloat16")),
    "7B, LoRA, micro-batches of 4": Job(
        "instruct_lora", "instruct", ("stage.micro_batch_size=4", "llm.dtype=bfloat16")
    ),
    "7B, int8 LoRA, recomputed, micro-batches of 4": Job(
        "instruct_lora", "instruct", ("stage.micro_batch_size=4", "llm.quantize=int8", "llm.dtype=bfloat16", RECOMPUTE)
    ),
    "7B, nf4 LoRA, recomputed, micro-batches of 4": Job(
        "instruct_lora", "instruct", ("stage.micro_batch_size=4", "llm.quantize=nf4", "llm.dtype=bfloat16", RECOMPUTE)
    ),
    "1.3B, stage 2, micro-batches of 8": Job(
        "instruct", "instruct", ("stage.micro_batch_size=8", "llm.path={models}/" + SMALL)
    ),
    "1.3B, stage 2, recomputed, micro-batches of 8": Job(
        "instruct", "instruct", ("stage.micro_batch_size=8", "llm.path={models}/" + SMALL, RECOMPUTE)
    ),
}
STEPS = 8


def make_models(folder: Path, device: str, tiny: bool) -> None:
    """Random weights in hub layout, with LLaMA's tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(_shared() / "tokenizers" / "llama2")
    for name, shape in {VICUNA: "tiny" if tiny else "7B", SMALL: "tiny" if tiny else "1.3B"}.items():
        config = SHAPES[shape].text
        config.vocab_size, config.bos_token_id, config.eos_token_id = 32_000, 1, 2
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            model = transformers.LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        del model
    vision = SHAPES["tiny" if tiny else "7B"].vision
    transformers.CLIPVisionModel(vision).save_pretrained(folder / CLIP)
    print("weights are written", flush=True)


def make_rows(folder: Path) -> None:
    """The real conversations and captions, repeated until they fill the steps."""
    for name in ("pretrain", "instruct"):
        rows = json.loads((_shared() / "annotations" / f"llava_{name}.json").read_text())
        rows = [row for row in rows if not row.get("image") or (_shared() / row["image"]).is_file()]
        found = [{**row, "id": f"{turn}_{row['id']}"} for turn in range(1 + 16 * STEPS // len(rows)) for row in rows]
        (folder / f"{name}.json").write_text(json.dumps(found))


def _shared() -> Path:
    return Path(os.environ["MMEXP_SHARED"]) / "data"


def overrides_of(job: Job, folder: Path, tiny: bool) -> list[str]:
    """What stands behind the command."""
    size = int(next(each for each in job.overrides if "micro_batch" in each).split("=")[1])
    own = [each.replace("{models}", str(folder / "models")) for each in job.overrides]
    return [
        "recipe=llava15", f"stage=llava15/{job.stage}", "data=llava_json", f"data.path={folder}/{job.rows}.json",
        f"data.image_root={_shared()}", *own, f"stage.batch_size={size}", f"paths.models={folder}/models",
        f"trainer.max_steps={STEPS}", *(["trainer=single", "processor.max_length_tokens=512"] if tiny else []),
    ]  # fmt: skip


def _call(module: str, args: list[str], env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"mmexp.{module}", *args], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "COLUMNS": "150", **(env or {})},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"mmexp.{module} {' '.join(args)}\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}")
    return done.stdout + done.stderr


def estimate(name: str, folder: Path, tiny: bool = False) -> float:
    """GB of the doctor for one run."""
    out = _call("doctor", [*overrides_of(RUNS[name], folder, tiny), "gpu=h100_80gb"], {"CUDA_VISIBLE_DEVICES": ""})
    found = re.search(r"fits? h100_80gb: ([\d.]+)", out)
    if not found:
        raise RuntimeError(f"the doctor did not say how much it takes:\n{out[-1500:]}")
    return float(found[1])


def run(name: str, folder: Path, tiny: bool = False) -> dict[str, Any]:
    """Trains a few steps and reads the run's own records."""
    began, outputs = time.perf_counter(), folder / "outputs" / re.sub(r"\W+", "_", name)
    settings = ["trainer.log_every_n_steps=1", "logger=[]", f"paths.outputs={outputs}"]
    _call("train", [*overrides_of(RUNS[name], folder, tiny), *settings])
    records = [json.loads(line) for file in outputs.glob("**/metrics.jsonl") for line in file.read_text().splitlines()]
    for part in outputs.glob("**/checkpoints"):
        shutil.rmtree(part)
    late = records[STEPS // 2 :]
    keys = ("time/step_s", "data/tokens_per_s", "data/media_per_s", "time/data_wait", "time/mfu")
    mean = {key: sum(record[key] for record in late) / len(late) for key in keys if key in late[0]}
    return {
        "peak_gb": max(record["memory/peak_gb"] for record in records),
        "losses": [record["train/loss"] for record in records],
        "steps_s": [record["time/step_s"] for record in records],
        "wall_s": time.perf_counter() - began,
        **mean,
    }
