"""A frozen part whose weights nothing has loaded is told, and only that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from mmexp.connector import IdentityConfig, MlpConfig, QformerConfig
from mmexp.encoder import LavisVisionConfig, TinyVisionConfig
from mmexp.engine import RunDir, StageJob, TrainingModule, save_weights
from mmexp.engine.fitting import _recipe
from mmexp.errors import ConfigError
from mmexp.model import InputPlan

FROZEN = {"encoder": "frozen", "connector": {"qformer": "frozen", "proj": "full"}, "llm": "frozen"}
QFORMER = QformerConfig(num_queries=4, width=16, num_layers=2, num_heads=2, ffn_width=24)


def module(job: StageJob, connector: Any = None, encoder: Any = None) -> TrainingModule:
    branch = job.plan.inputs["image"]
    chosen = InputPlan(encoder=encoder or branch.encoder, connector=connector or branch.connector)
    plan = replace(job.plan, inputs={"image": chosen})
    return TrainingModule(plan, job.objective, job.optim, _recipe(job, 2), job.init_from)


def start(job: StageJob, only: str, connector: Any = None) -> RunDir:
    """A run that hands on the tensors of the connector that begin with `only`."""
    made = module(replace(job, policy={**FROZEN, "connector": "full"}), connector)
    made.configure_model()
    parts = {"connector": made.parts()["connector"].requires_grad_(False)}
    names = {name for name in parts["connector"].state_dict() if name.startswith(only)}
    job.run.update_manifest(status="finished")
    save_weights(parts, {"connector": names}, job.run)
    return job.run


def test_a_random_frozen_child_is_named_with_what_to_do(make_job: Callable[..., StageJob]) -> None:
    with pytest.raises(ConfigError) as error:
        module(make_job(policy=FROZEN), QFORMER).configure_model()
    told = str(error.value)
    assert told.startswith("stage.policy.connector.qformer: frozen, and ")
    assert "qformer.query_tokens" in told
    for way in ("stage.init_from=", "stage.policy.connector.qformer=full", "stage.allow_random_frozen=true"):
        assert way in told
    assert "proj" not in told


def test_random_weights_may_be_meant(make_job: Callable[..., StageJob]) -> None:
    made = module(make_job(policy=FROZEN, allow_random_frozen=True), QFORMER)
    made.configure_model()
    assert {name for name, p in made.parts()["connector"].named_parameters() if p.requires_grad} == {
        "proj.weight", "proj.bias"}  # fmt: skip


def test_a_start_that_has_the_weights_is_enough(make_job: Callable[..., StageJob]) -> None:
    whole = start(make_job("whole"), "qformer.", QFORMER)
    module(make_job(policy=FROZEN, init_from=(whole,)), QFORMER).configure_model()
    with pytest.raises(ConfigError, match=r"stage\.policy\.connector: frozen, and 2 of its tensors .*proj\.weight"):
        module(make_job(policy={**FROZEN, "connector": "frozen"}, init_from=(whole,)), QFORMER).configure_model()
    part = start(make_job("part"), "qformer.bert", QFORMER)
    with pytest.raises(ConfigError, match=r"and 1 of its tensors .*: qformer\.query_tokens"):
        module(make_job(policy=FROZEN, init_from=(part,)), QFORMER).configure_model()


def test_a_checkpoint_of_another_program_counts_too(make_job: Callable[..., StageJob], tmp_path: Path) -> None:
    frozen = {"encoder": "frozen", "connector": "frozen", "llm": "full"}
    with pytest.raises(ConfigError, match=r"stage\.policy\.connector: frozen, and 4 of its tensors"):
        module(make_job(policy=frozen)).configure_model()
    made = module(make_job(), MlpConfig())
    made.configure_model()
    state = made.parts()["connector"].state_dict()
    save_file({f"model.mm_projector.{name}": tensor + 1 for name, tensor in state.items()}, tmp_path / "mm.safetensors")
    module(make_job(policy=frozen, init_from=(tmp_path / "mm.safetensors",))).configure_model()


def test_encoders_from_scratch_are_random_and_loaded_ones_are_not(make_job: Callable[..., StageJob]) -> None:
    encoder = LavisVisionConfig(path="", from_scratch=True, width=24, num_blocks=1, num_heads=2, mlp_width=36,
                                patch_size_px=4, image_size_px=16)  # fmt: skip
    policy = {"encoder": {"vit": "frozen", "ln_vision": "full"}, "connector": "full", "llm": "frozen"}
    with pytest.raises(ConfigError, match=r"stage\.policy\.encoder\.vit: frozen"):
        module(make_job(policy=policy), encoder=encoder).configure_model()
    module(make_job(policy={**policy, "encoder": "full"}), encoder=encoder).configure_model()


def test_a_part_without_weights_cannot_be_random(make_job: Callable[..., StageJob]) -> None:
    job = make_job(policy={"encoder": "frozen", "connector": "frozen", "llm": "full"})
    encoder = TinyVisionConfig(width=job.plan.spec.width)
    made = module(job, IdentityConfig(), encoder)
    made.configure_model()
    assert not list(made.parts()["connector"].parameters())
