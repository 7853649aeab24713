"""The whole tree: all mistakes at once, and configurations of runs trusted with nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from mmexp.config import (
    ChatConfig,
    EvaluateConfig,
    Invocation,
    check,
    check_own,
    compose,
    conf_dir,
    load_run_config,
    redact,
    registered_targets,
    resolve,
)
from mmexp.errors import CheckpointError, ConfigError

TINY = ["encoder=tiny", "llm=tiny", "logger=none"]


def run(*overrides: str) -> Invocation:
    return compose("train", [*TINY, *overrides])


def mistakes(*overrides: str) -> dict[str, str]:
    """Config path to message."""

    def attempt() -> None:
        invocation = run(*overrides)
        check(invocation.cfg, invocation.registered)

    with pytest.raises(ConfigError) as info:
        attempt()
    return {error.where: str(error) for error in info.value.errors or [info.value]}


def test_a_right_configuration_gives_typed_spine_and_built_parts() -> None:
    invocation = run("stage=align", "stage.lr=1", "connector.depth=3")
    checked = check(invocation.cfg, invocation.registered)
    assert checked.spine.stage.kind == "align"
    assert checked.spine.stage.lr == 1.0
    assert checked.parts["connector"].depth == 3
    assert checked.parts["logger"] == {}
    assert set(checked.parts["evaluation"]) == {"vqa", "caption", "grounding", "retrieval"}


def test_an_empty_choice_is_none() -> None:
    invocation = run("encoder=none", "connector=none")
    assert check(invocation.cfg, invocation.registered).parts["encoder"] is None


@pytest.mark.parametrize("off", ["null", "none"])
def test_null_and_none_switch_a_choice_off(off: str) -> None:
    invocation = run(f"evaluation={off}", f"encoder={off}", f"connector={off}", "recipe=null", "experiments=null")
    checked = check(invocation.cfg, invocation.registered)
    assert (checked.parts["evaluation"], checked.parts["encoder"]) == ({}, None)
    stage = checked.spine.stage
    assert stage.batch_size == stage.twin["batch_size"]  # no recipe, so no published size


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("stage.lr=fast", "stage.lr"),
        ("stage.lrr=1", "stage.lrr"),
        ("stage.lr=-1", "stage.lr"),
        ("seed=1.5", "seed"),
        ("processor.image_fit=crp", "processor.image_fit"),
        ("processor.rows=flat", "processor.rows"),
        ("processor.feature_cache=always", "processor.feature_cache"),
        ("processor.feature_cache_gb=0", "processor.feature_cache_gb"),
        ("processor.bad_media_cap=1.5", "processor.bad_media_cap"),
        ("processor.bad_media_cap=-0.1", "processor.bad_media_cap"),
        ("paths.output=x", "paths.output"),
        ("stage.policy.lm=full", "stage.policy.lm"),
        ("stage.policy.llm=ful", "stage.policy.llm"),
        ("stage.policy.llm={layers:frozn}", "stage.policy.llm.layers"),
        ("~stage.policy.encoder", "stage.policy.encoder"),
        ("stage.lr_by_part={projector:1e-3}", "stage.lr_by_part.projector"),
        ("stage.batch_size=33", "stage.batch_size"),
        ("stage.micro_batch_size=0", "stage.micro_batch_size"),
        ("stage.lora.rank=eight", "stage.lora.rank"),
        ("stage.name=???", "stage.name"),
        ("connector=none", "encoder"),
        ("connector.depht=3", "connector.depht"),
        ("trainer.max_stesp=3", "trainer.max_stesp"),
        ("trainer.evaluate_every_n_steps=0", "trainer.evaluate_every_n_steps"),
        ("trainer.evaluate_samples=-2", "trainer.evaluate_samples"),
        ("evaluation.vqa.bach_size=3", "evaluation.vqa.bach_size"),
        ("evaluation.vqa.splits.heldout_images.prepare.sed=1", "evaluation.vqa.splits.heldout_images.prepare.sed"),
        ("data=llava_json", "data.path"),
        ("name=${nowhere}", "name"),
        ("encoder._target_=os.system", "encoder._target_"),
        ("encoder=3", "encoder"),
        ("experiments=absent", "experiments"),
        ("seed=", "seed"),
    ],
)
def test_one_mistake_is_one_message_with_its_path(override: str, where: str) -> None:
    assert list(mistakes(override)) == [where]


def test_evaluations_between_steps_need_a_benchmark() -> None:
    assert list(mistakes("trainer.evaluate_every_n_steps=5", "evaluation=none")) == ["trainer.evaluate_every_n_steps"]
    invocation = run("trainer.evaluate_every_n_steps=5")
    check(invocation.cfg, invocation.registered)
    check(run("evaluation=none").cfg, invocation.registered)


@pytest.mark.parametrize(
    ("encoder", "settings", "where"),
    [
        ("tiny", ["stage.policy.encoder=full"], "stage.policy.encoder"),
        ("tiny", ["stage.policy.encoder=lora"], "stage.policy.encoder"),
        ("tiny", ["stage.policy.encoder={model:frozen,head:full}"], "stage.policy.encoder.head"),
        ("tiny", ["stage.live_dropout=[encoder]"], "stage.live_dropout"),
        ("blip2_vit_g", ["stage.policy.encoder={vit:full,ln_vision:full}"], "stage.policy.encoder.vit"),
        ("blip2_vit_g", ["stage.policy.encoder={vit:frozen,ln_vision:full}"], None),
        ("tiny", ["stage.policy.encoder=frozen"], None),
    ],
)
def test_a_feature_cache_wants_a_frozen_encoder(encoder: str, settings: list[str], where: str | None) -> None:
    given = [f"encoder={encoder}", "scale=paper", *settings]
    invocation = run(*given)
    check(invocation.cfg, invocation.registered)
    cached = [*given, "processor.feature_cache=read_write"]
    if where is None:
        invocation = run(*cached)
        assert check(invocation.cfg, invocation.registered).spine.processor.feature_cache == "read_write"
    else:
        found = mistakes(*cached)
        assert list(found) == [where]
        assert "try: processor.feature_cache=none" in found[where]


def test_all_mistakes_at_once_with_what_to_try() -> None:
    found = mistakes("encodr=clip_l14", "connector=mlp3x", "connector.depht=3", "stage.lr=fast", "seed=a", "tiny")
    assert set(found) == {"encodr", "connector", "connector.depht", "stage.lr", "seed", "command line"}
    assert "try: encoder=clip_l14" in found["encodr"]
    assert "try: connector=mlp2x" in found["connector"]
    assert "identity, linear, mlp2x" in found["connector"]
    assert "try: connector.depth" in found["connector.depht"]


def test_an_unknown_top_level_key_is_found_without_a_command_line_too() -> None:
    invocation = run()
    cfg = OmegaConf.create({**resolve(invocation.cfg), "proccessor": {}})
    with pytest.raises(ConfigError, match="try: processor"):
        check(cfg, invocation.registered)


def test_keys_of_a_command_are_left_alone() -> None:
    invocation = compose("preview", [*TINY, "n=2", "out=p.jsonl", "stage=align"])
    assert check(invocation.cfg, invocation.registered, skip=("n", "out")).spine.stage.kind == "align"


def test_own_keys_are_typed() -> None:
    assert check_own(ChatConfig, compose("chat", ["run=r", "temperature=1"]).cfg).temperature == 1.0
    assert check_own(EvaluateConfig, compose("evaluate", ["run=r", "splits=[a]"]).cfg).splits == ("a",)
    with pytest.raises(ConfigError) as info:
        check_own(ChatConfig, compose("chat", ["temperature=hot"]).cfg)
    assert [error.where for error in info.value.errors] == ["run", "temperature"]


def write(tmp_path: Path, config: Any) -> Path:
    (tmp_path / "config.yaml").write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return tmp_path


def test_a_run_configuration_comes_back_the_same(tmp_path: Path) -> None:
    first = run("stage.lr_by_part={connector:1e-3}")
    checked = check(first.cfg, first.registered)
    again = check(load_run_config(write(tmp_path, redact(checked.plain))), first.registered)
    assert again == checked


def test_a_run_configuration_names_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = resolve(run().cfg)
    plain["connector"] = {"_target_": "os.system", "command": "touch marker"}
    plain["data"]["prepare"] = {"_target_": "subprocess.run", "args": ["touch", "marker"]}
    with pytest.raises(ConfigError) as info:
        check(load_run_config(write(tmp_path, plain)), registered_targets([conf_dir()]))
    assert {error.where for error in info.value.errors} == {"connector._target_", "data.prepare._target_"}
    assert not (tmp_path / "marker").exists()


def test_a_run_configuration_resolves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", "secret")
    plain = resolve(run().cfg) | {"name": "${oc.env:PLANTED}"}
    assert check(load_run_config(write(tmp_path, plain)), run().registered).spine.name == "${oc.env:PLANTED}"


@pytest.mark.parametrize(
    "text", ["a: [", "- 1", "x: !!python/object/apply:os.system ['touch marker']", "x: !!python/name:os.system"]
)
def test_damaged_and_hostile_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        load_run_config(write(tmp_path, text))
    assert not (tmp_path / "marker").exists()


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.yaml"):
        load_run_config(tmp_path)
