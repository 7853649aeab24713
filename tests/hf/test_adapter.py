"""LoRA runs: folded into a whole folder, or the adapter alone for peft."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmexp.engine import RunDir, load_weights, save_weights
from mmexp.errors import CheckpointError, ConfigError
from mmexp.hf import export_adapter
from mmexp.model import Plan
from mmexp.tuning import LoraSettings, apply_policy


@pytest.fixture
def lora_run(make_plan: Callable[..., Plan], tmp_path: Path) -> tuple[Plan, RunDir]:
    """A run whose LLM has an adapter with weights of its own."""
    plan, run = make_plan(), RunDir(tmp_path / "run")
    run.weights.mkdir(parents=True)
    model = plan.build()
    policy = {"encoder": "frozen", "connector": "full", "llm": "lora"}
    apply_policy(model, policy, LoraSettings(rank=2, alpha=4))
    torch.manual_seed(0)
    for name, parameter in model.llm.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_weights(model.parts(), {}, run)
    return plan, run


def test_peft_alone_makes_the_run_s_language_model(lora_run: tuple[Plan, RunDir], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plan, run = lora_run
    written = export_adapter(plan, run.path, run.manifest(), tmp_path / "out")
    assert {file.name for file in written} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "connector.safetensors",
    }
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"])
    before = base(torch.tensor([[5, 6, 7]])).logits.detach().clone()
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    model = plan.build().eval()
    load_weights(model.parts(), run)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(theirs(ids).logits, model.llm.model(ids).logits, atol=1e-4, rtol=1e-4)
    assert (before - theirs(ids).logits).abs().max() > 0.1


def test_an_adapter_on_changed_weights_is_refused(lora_run: tuple[Plan, RunDir], tmp_path: Path) -> None:
    plan, run = lora_run
    manifest: dict[str, Any] = run.manifest()
    manifest["weights"] = [*manifest["weights"], {"part": "llm", "kind": "full", "files": {}}]
    with pytest.raises(CheckpointError, match="form=merged"):
        export_adapter(plan, run.path, manifest, tmp_path / "out")
    with pytest.raises(ConfigError, match="an adapter of the LLM"):
        export_adapter(plan, run.path, {"weights": []}, tmp_path / "out")
