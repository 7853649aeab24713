"""The LLM's adapter alone, as peft reads it on top of the LLM's base weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmexp.errors import CheckpointError, ConfigError
from mmexp.hf.base import require_equal_names

if TYPE_CHECKING:
    from mmexp.model import Plan

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_README = """---
library_name: peft
base_model: {base}
---

# Adapter of {base}

`PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), folder)` is the language model of this run.
{connector}
"""
_CONNECTOR = """
`connector.safetensors` holds the trained connector under the names that mmexp gives it (`0.*` and `2.*` of a two-layer
MLP, as LLaVA's `mm_projector.bin`)."""


def export_adapter(plan: Plan, run: Path, manifest: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes adapter_config.json and adapter_model.safetensors, and the connector where it was trained.

    Args:
        plan: Of the run.
        run: Its directory.
        manifest: Its manifest.
        out: New folder.

    Raises:
        ConfigError: the run trained no adapter of the LLM, or `out` is in use.
        CheckpointError: the LLM below the adapter is not the base LLM, or names differ from peft's.
    """
    kinds = {(entry["part"], entry["kind"]) for entry in manifest.get("weights", [])}
    _check(kinds, out)
    source = run / "weights" / "llm_lora"
    settings = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    base = str(getattr(plan.llm, "path", "") or "")
    settings |= {"base_model_name_or_path": base or None, "task_type": "CAUSAL_LM"}
    _check_names(plan, settings, source / WEIGHTS)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(source / WEIGHTS, out / WEIGHTS)
    written = [out / CONFIG, out / WEIGHTS]
    has_connector = ("connector", "full") in kinds
    if has_connector:
        shutil.copyfile(run / "weights" / "connector.safetensors", out / "connector.safetensors")
        written.append(out / "connector.safetensors")
    readme = _README.format(base=base or "the base LLM", connector=_CONNECTOR if has_connector else "")
    (out / "README.md").write_text(readme, encoding="utf-8")
    return written


def _check(kinds: set[tuple[str, str]], out: Path) -> None:
    if ("llm", "lora") not in kinds:
        has = ", ".join(f"{part} ({kind})" for part, kind in sorted(kinds)) or "nothing"
        raise ConfigError(f"the run holds {has}", expected="an adapter of the LLM (stage.policy.llm=lora)",
                          where="form=adapter", fix="form=merged")  # fmt: skip
    if ("llm", "full") in kinds:
        raise CheckpointError("an earlier stage changed the LLM's own weights, which the adapter lies on",
                              where="form=adapter", fix="form=merged")  # fmt: skip
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists", expected="a new or empty folder", where="out")


def _check_names(plan: Plan, settings: Mapping[str, Any], file: Path) -> None:
    """The tensors must be those that peft makes for this LLM with these settings."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        found = set(tensors.keys())
    fields = ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora")
    with torch.device("meta"):
        llm: Any = plan.llm.empty()
        inject_adapter_in_model(LoraConfig(**{name: settings[name] for name in fields if name in settings}), llm.model)
    wanted = {f"base_model.model.{name}" for name in get_peft_model_state_dict(llm.model)}
    require_equal_names(found, wanted, f"adapter {file}")
