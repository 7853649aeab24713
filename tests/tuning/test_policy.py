"""The policy tree: what it opens, what it names when it is wrong, and adapters that peft can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmexp.connector import MlpConfig, PerceiverConfig
from mmexp.encoder import LavisVisionConfig, TinyVisionConfig
from mmexp.engine import RunDir, load_weights, save_weights
from mmexp.errors import ConfigError
from mmexp.llm import TinyLlmConfig
from mmexp.model import Branch, MultimodalModel
from mmexp.tuning import LoraSettings, apply_policy, describe, merge_adapter, parameter_groups, save_adapter

LORA = LoraSettings(rank=4, alpha=8, dropout=0.0)


def model(dtype: str = "float32") -> MultimodalModel:
    spec = TinyVisionConfig().spec()
    torch.manual_seed(0)
    branch = Branch(TinyVisionConfig().build(), MlpConfig().build(spec, 32), spec)
    return MultimodalModel(TinyLlmConfig().build().to(getattr(torch, dtype)), {"image": branch})


def trained(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_leaves_open_and_freeze_whole_parts() -> None:
    net = model()
    parts = apply_policy(net, {"encoder": "frozen", "connector": "full", "llm": "frozen"}, LORA)
    assert trained(parts["encoder"]) == trained(parts["llm"]) == 0
    assert trained(parts["connector"]) == sum(p.numel() for p in parts["connector"].parameters())
    assert not parts["encoder"].training
    assert parts["connector"].training


def test_a_frozen_part_can_keep_its_dropout() -> None:
    net, policy = model(), {"encoder": "frozen", "connector": "full", "llm": "frozen"}
    parts = apply_policy(net, policy, LORA, live_dropout=["llm"])
    assert trained(parts["llm"]) == 0
    assert [part.training for part in parts.values()] == [False, True, True]
    table = describe(parts, policy, 1e-3, {})
    assert [row.policy for row in table] == ["frozen", "full", "frozen, dropout active"]
    with pytest.raises(ConfigError, match=r"stage\.live_dropout"):
        apply_policy(model(), policy, LORA, live_dropout=["lm"])


def test_a_mapping_reaches_children_and_must_name_them_all() -> None:
    net = model()
    parts = apply_policy(
        net, {"encoder": "frozen", "connector": {"0": "frozen", "1": "frozen", "2": "full"}, "llm": "frozen"}, LORA
    )
    assert trained(parts["connector"][0]) == 0
    assert trained(parts["connector"][2]) > 0
    with pytest.raises(ConfigError, match="1 is not named"):
        apply_policy(model(), {"encoder": "frozen", "connector": {"0": "full", "2": "full"}, "llm": "frozen"}, LORA)


def test_a_mapping_names_the_tensors_beside_the_children() -> None:
    spec = TinyVisionConfig().spec()
    branch = Branch(TinyVisionConfig().build(), PerceiverConfig(num_latents=2, depth=1).build(spec, 32), spec)
    net = MultimodalModel(TinyLlmConfig().build(), {"image": branch})
    tree = {"latents": "full", "media_pos_emb": "frozen", "layers": "frozen", "norm": "frozen", "linear": "frozen"}
    apply_policy(net, {"encoder": "frozen", "connector": tree, "llm": "frozen"}, LORA)
    assert [name for name, p in branch.connector.named_parameters() if p.requires_grad] == ["latents"]
    del tree["latents"]
    with pytest.raises(ConfigError, match="latents is not named"):
        apply_policy(net, {"encoder": "frozen", "connector": tree, "llm": "frozen"}, LORA)
    with pytest.raises(ConfigError, match="single tensor"):
        apply_policy(net, {"encoder": "frozen", "connector": {**tree, "latents": "lora"}, "llm": "frozen"}, LORA)


def test_all_mistakes_come_at_once_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        apply_policy(model(), {"encodr": "frozen", "connector": "ful", "llm": "frozen"}, LORA)
    text = str(caught.value)
    assert "3 mistakes" in text
    assert "stage.policy.encoder" in text
    assert "stage.policy.connector=full" in text
    assert "encoder is not named" in text


def test_groups_carry_learning_rates_and_spare_norms_from_decay() -> None:
    net = model()
    parts = apply_policy(net, {"encoder": "frozen", "connector": "full", "llm": "full"}, LORA)
    groups = {group["name"]: group for group in parameter_groups(parts, 2e-5, {"connector": 1e-3}, 0.1)}
    assert groups["connector"]["lr"] == 1e-3
    assert groups["llm"]["lr"] == 2e-5
    assert groups["llm"]["weight_decay"] == 0.1
    assert groups["llm/no_decay"]["weight_decay"] == 0.0
    assert all(p.ndim == 1 for p in groups["llm/no_decay"]["params"])
    rows = {
        row.name: row for row in describe(parts, {"encoder": "frozen", "connector": "full", "llm": "full"}, 2e-5, {})
    }
    assert rows["encoder"].num_trained == 0
    assert rows["encoder"].lr == 0
    assert sum(len(group["params"]) for group in groups.values()) == sum(p.requires_grad for p in net.parameters())


def test_a_learning_rate_for_a_frozen_part_is_refused() -> None:
    parts = apply_policy(model(), {"encoder": "frozen", "connector": "full", "llm": "frozen"}, LORA)
    with pytest.raises(ConfigError, match="llm does not train"):
        parameter_groups(parts, 1e-3, {"llm": 1e-5}, 0.0)


def test_lora_opens_adapters_only_and_peft_reads_the_files(tmp_path: Path) -> None:
    from peft import PeftModel

    net = model()
    parts = apply_policy(net, {"encoder": "frozen", "connector": "full", "llm": "lora"}, LORA)
    names = [name for name, p in parts["llm"].named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert not any("lm_head" in name for name in names)
    for name, parameter in parts["llm"].named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.randint(3, 200, (1, 7))
    with torch.no_grad():
        adapted = net.llm.model(input_ids=ids).logits
    save_adapter(parts["llm"], tmp_path)
    alone = PeftModel.from_pretrained(TinyLlmConfig().build().model, str(tmp_path)).eval()
    merged = model().llm
    merge_adapter(merged, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(alone(input_ids=ids).logits, adapted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(merged.model(input_ids=ids).logits, adapted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("leaf", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_trains_in_an_llm_of_16_bit_is_float32(dtype: Any, leaf: str, caplog: pytest.LogCaptureFixture) -> None:
    net = model(dtype)
    with caplog.at_level("INFO", "mmexp"):
        llm = apply_policy(net, {"encoder": "frozen", "connector": "full", "llm": leaf}, LORA)["llm"]
    weights = list(llm.parameters())
    assert {w.dtype for w in weights if w.requires_grad} == {torch.float32}
    assert {w.dtype for w in weights if not w.requires_grad} <= {getattr(torch, dtype)}
    assert f"llm: {trained(llm):,} weights that train are float32" in caplog.text
    moved = next(w for w in weights if w.requires_grad and w.any())
    before = moved.detach().clone()
    optimizer = torch.optim.SGD([moved], lr=1e-4)
    moved.grad = before.clone()
    optimizer.step()
    assert not torch.equal(moved, before)  # an update of 1/10,000, which 16 bit would round away


def test_lora_on_a_connector_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stage\.policy\.connector"):
        apply_policy(model(), {"encoder": "frozen", "connector": "lora", "llm": "frozen"}, LORA)


@pytest.mark.parametrize("family", ["eva", "clip"])
def test_adapters_on_a_lavis_encoder_beside_a_trained_norm(tmp_path: Path, family: Any) -> None:
    config = LavisVisionConfig(path="", from_scratch=True, family=family, width=24, num_blocks=2, num_heads=2,
                               mlp_width=36, patch_size_px=4, image_size_px=16)  # fmt: skip
    torch.manual_seed(0)
    encoder = config.build()
    base = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    net = MultimodalModel(TinyLlmConfig().build(), {"image": Branch(encoder, MlpConfig().build(config.spec(), 32),
                                                                    config.spec())})  # fmt: skip
    policy = {"encoder": {"vit": "lora", "ln_vision": "full"}, "connector": "frozen", "llm": "frozen"}
    parts = apply_policy(net, policy, LORA)
    names = [name for name, p in encoder.named_parameters() if p.requires_grad]
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names if ".lora_" in name}
    assert adapted == ({"qkv", "proj", "fc1", "fc2"} if family == "eva" else {"out_proj", "c_fc", "c_proj"})
    assert {name for name in names if ".lora_" not in name} == {"ln_vision.weight", "ln_vision.bias"}
    images = torch.randn(2, 3, 16, 16)
    encoder(images).square().sum().backward()
    dead = [name for name, p in encoder.named_parameters() if "lora_B" in name and not p.grad.any()]
    assert not dead, "an adapter that is never called"
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    run = RunDir(tmp_path)
    run.weights.mkdir()
    save_weights(parts, {}, run)
    assert [(entry["part"], entry["kind"]) for entry in run.manifest()["weights"]] == [("encoder", "full"),
                                                                                     ("encoder", "lora")]  # fmt: skip
    again = config.build()
    again.load_state_dict(base)
    load_weights({"encoder": again}, run)
    torch.testing.assert_close(again(images), encoder.eval()(images), atol=1e-5, rtol=1e-5)


def test_adapters_on_a_piece_are_refused() -> None:
    policy = {"encoder": "frozen", "connector": {"0": "lora", "1": "frozen", "2": "full"}, "llm": "frozen"}
    with pytest.raises(ConfigError, match="lora on a piece of a transformer") as error:
        apply_policy(model(), policy, LORA)
    assert error.value.where == "stage.policy.connector.0"
    with pytest.raises(ConfigError, match="no pretrained transformer"):
        apply_policy(model(), {"encoder": "frozen", "connector": "lora", "llm": "frozen"}, LORA)
