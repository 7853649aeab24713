"""Every shipped choice composes and passes the door, alone and in every recipe, stage and scale."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from mmexp.config import check, compose, conf_dir, instantiate
from mmexp.config.paths import groups
from mmexp.data import MixtureConfig

GROUPS = groups([conf_dir()])
COMPONENTS = [
    (group, choice)
    for group in ("encoder", "connector", "llm", "template", "data", "objective", "optim", "trainer", "logger")
    for choice in GROUPS[group]
]
STAGES = [("null", stage) for stage in GROUPS["stage"]] + [
    (recipe, stage)
    for recipe in GROUPS["recipe"]
    for stage in yaml.safe_load((conf_dir() / f"recipe/{recipe}.yaml").read_text())["stages"]
]
READERS = {choice for choice in GROUPS["data"] if "path: ???" in (conf_dir() / f"data/{choice}.yaml").read_text()}
GIVEN = {choice: ["data.path=rows.json"] for choice in READERS} | {
    "vqa_v2": ["data.path=q.json", "data.annotations=a.json"]
}
KINDS = {
    "align",
    "instruct",
    "lora",
    "represent",
    "generate",
    "caption",
    "retrieve",
    "finetune",
    "pretrain",
    "multitask",
}
QWEN_VL = ("pretrain", "multitask", "instruct")
BENCHMARKS = {"vqa", "caption", "grounding", "retrieval", "blip2_vqa", "blip2_caption", "scienceqa", "multiple_choice"}


@pytest.mark.parametrize("file", sorted(conf_dir().rglob("*.yaml")), ids=lambda file: str(file.relative_to(conf_dir())))
def test_choices_are_short_and_explained(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (40 if file.parent == conf_dir() else 30)
    assert any(line.startswith("# ") and not line.startswith("# @package") for line in lines[:2])
    assert all(len(line) <= 120 and line.isascii() for line in lines)


@pytest.mark.parametrize(("group", "choice"), COMPONENTS)
def test_every_choice_builds(group: str, choice: str) -> None:
    invocation = compose("train", [f"{group}={choice}", *GIVEN.get(choice, [])])
    built = instantiate(invocation.cfg[group], group, invocation.registered)
    assert not built if choice == "none" and group != "llm" else built is not None


@pytest.mark.parametrize("choice", GROUPS["evaluation"])
def test_every_benchmark_builds(choice: str) -> None:
    given = [f"evaluation.{choice.split('_')[-1]}.splits.test.path=x.json"] if choice in BENCHMARKS else []
    invocation = compose("evaluate", ["run=r", f"evaluation={choice}", *given])
    assert instantiate(invocation.cfg.get("evaluation"), "evaluation", invocation.registered) or choice == "none"


@pytest.mark.parametrize("scale", GROUPS["scale"])
@pytest.mark.parametrize(("recipe", "stage"), STAGES)
def test_every_stage_is_right_alone_and_in_its_recipes(recipe: str, stage: str, scale: str) -> None:
    invocation = compose("train", [f"recipe={recipe}", f"stage={stage}", f"scale={scale}"])
    checked = check(invocation.cfg, invocation.registered)
    assert checked.spine.stage.name.split("_")[-1] in KINDS
    data = checked.parts["data"]
    datasets = [part.data for part in data.parts.values()] if isinstance(data, MixtureConfig) else [data]
    worlds = {type(getattr(dataset, "prepare", None)).__name__ == "WorldConfig" for dataset in datasets}
    assert worlds == {scale == "shapes"}


@pytest.mark.parametrize("recipe", GROUPS["recipe"])
def test_a_recipe_starts_with_its_first_stage_and_lists_what_exists(recipe: str) -> None:
    checked = compose("train", [f"recipe={recipe}"])
    assert set(checked.cfg.stages) <= set(GROUPS["stage"])
    assert checked.cfg.stage.name == checked.cfg.stages[0].replace("/", "_")
    assert checked.cfg.paper


def test_the_numbers_of_llava15() -> None:
    """Source: LLaVA `scripts/v1_5/pretrain.sh`, `finetune.sh`, `finetune_lora.sh`."""
    align = compose("train", ["recipe=llava15", "stage=llava15/align"]).cfg
    tune = compose("train", ["recipe=llava15", "stage=llava15/instruct"]).cfg
    lora = compose("train", ["recipe=llava15_lora", "stage=llava15/instruct_lora"]).cfg
    assert (align.stage.lr, align.stage.batch_size, align.stage.epochs) == (1e-3, 256, 1)
    assert (tune.stage.lr, tune.stage.batch_size, tune.stage.epochs) == (2e-5, 128, 1)
    assert (align.processor.image_fit, tune.processor.image_fit) == ("crop", "pad")
    assert (align.template.name, tune.template.name) == ("plain", "vicuna_v1")
    assert (align.processor.order, tune.processor.order, lora.processor.order) == ("shuffled", *["modality_length"] * 2)
    twin = compose("train", ["recipe=llava15", "stage=llava15/instruct", "scale=shapes"]).cfg
    assert twin.processor.order == "shuffled"
    assert align.stage.policy == {"encoder": "frozen", "connector": "full", "llm": "frozen"}
    assert tune.stage.policy == {"encoder": "frozen", "connector": "full", "llm": "full"}
    assert {(c.stage.warmup_ratio, c.stage.weight_decay, c.stage.grad_clip) for c in (align, tune)} == {
        (0.03, 0.0, None)
    }
    assert (lora.stage.lr, lora.stage.lr_by_part, lora.stage.policy.llm) == (2e-4, {"connector": 2e-5}, "lora")
    assert lora.stage.lora == {"rank": 128, "alpha": 256, "dropout": 0.05, "targets": "all-linear"}


def test_the_numbers_of_llava() -> None:
    """Source: Visual Instruction Tuning, section 5; `scripts/pretrain.sh`."""
    align = compose("train", ["recipe=llava", "stage=llava/align"]).cfg
    tune = compose("train", ["recipe=llava", "stage=llava/instruct"]).cfg
    assert (align.stage.lr, align.stage.batch_size, align.connector.depth) == (2e-3, 128, 1)
    assert (tune.stage.lr, tune.stage.batch_size, tune.stage.epochs) == (2e-5, 32, 3)
    assert (align.processor.image_fit, tune.processor.image_fit) == ("crop", "crop")
    assert (align.template.name, tune.template.name) == ("plain", "llava_v1")


def test_the_numbers_of_blip2s_first_stage() -> None:
    """Source: BLIP-2, section 3.4."""
    cfg = compose("train", ["stage=blip2/represent", "scale=paper"]).cfg
    assert (cfg.stage.lr, cfg.stage.weight_decay, cfg.stage.batch_size) == (1e-4, 0.05, 1680)
    assert (cfg.stage.max_steps, cfg.stage.warmup_ratio, cfg.optim.beta2) == (250_000, 0.008, 0.98)
    assert (cfg.connector.variant, cfg.llm.bos_token, cfg.template.name) == ("full", "[DEC]", "blip2_represent")


def test_the_numbers_of_qwen_vl() -> None:
    """Source: Qwen-VL, table 8 and table 5."""
    cfgs = [compose("train", ["recipe=qwen_vl", f"stage=qwen_vl/{name}"]).cfg for name in QWEN_VL]
    stages = [cfg.stage for cfg in cfgs]
    assert [stage.lr for stage in stages] == [2e-4, 5e-5, 1e-5]
    assert [cfg.stage.lr * cfg.optim.min_lr_ratio for cfg in cfgs] == pytest.approx([1e-6, 1e-5, 1e-6])
    assert [stage.max_steps for stage in stages] == [50_000, 19_000, 8_000]
    assert [math.ceil(stage.max_steps * stage.warmup_ratio) for stage in stages] == [500, 400, 3_000]
    assert [stage.batch_size for stage in stages] == [30_720, 4_096, 128]
    assert [stage.get("layer_decay") for stage in stages] == [{"encoder": 0.95}, {"encoder": 0.95}, None]
    assert {(stage.weight_decay, stage.grad_clip) for stage in stages} == {(0.05, 1.0)}
    assert {(cfg.optim.beta2, cfg.optim.eps) for cfg in cfgs} == {(0.98, 1e-6)}
    assert [cfg.encoder.get("image_size_px") for cfg in cfgs] == [None, 448, 448]
    assert [cfg.processor.max_length_tokens for cfg in cfgs] == [512, 2048, 2048]
    assert [cfg.template.name for cfg in cfgs] == ["qwen_vl_base", "qwen_vl_base", "qwen_vl"]
    parts = cfgs[0].data.parts
    assert sum(part.weight for part in parts.values()) == pytest.approx(1417.4)
    assert parts.laion_zh.weight / 1417.4 == pytest.approx(0.227, abs=0.003)
    assert sum(part.weight for part in cfgs[1].data.parts.values()) == pytest.approx(76.8)
    assert cfgs[1].data.homogeneous
    twin = compose("train", ["recipe=qwen_vl", "scale=shapes"]).cfg.data.parts
    assert twin.chinese.weight / (twin.chinese.weight + twin.english.weight) == pytest.approx(0.227)


def test_the_command_line_beats_everything() -> None:
    overrides = ["recipe=llava15", "scale=shapes", "encoder=tiny", "data=llava_json", "stage.lr=0.5", "data.path=x"]
    cfg = compose("train", [*overrides, "template=chatml", "trainer=smoke"]).cfg
    assert cfg.encoder["_target_"] == "mmexp.encoder.TinyVisionConfig"
    assert (cfg.stage.lr, cfg.template.name, cfg.trainer.max_steps, cfg.data.path) == (0.5, "chatml", 2, "x")


def test_models_may_lie_in_a_folder_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "lmsys" / "vicuna-7b-v1.5").mkdir(parents=True)
    cfg = compose("train", ["recipe=llava15", f"paths.models={tmp_path}"]).cfg
    assert cfg.llm.path == str(tmp_path / "lmsys" / "vicuna-7b-v1.5")
    assert cfg.encoder.path == "openai/clip-vit-large-patch14-336"
    assert compose("train", ["encoder=eva_g", f"paths.models={tmp_path}"]).cfg.encoder.path == "eva_vit_g.pth"
    (tmp_path / "eva_vit_g.pth").touch()
    cfg = compose("train", ["encoder=eva_g", f"paths.models={tmp_path}"]).cfg
    assert cfg.encoder.path == str(tmp_path / "eva_vit_g.pth")
