"""The Q-Former: sizes as published, numerics as transformers, and its ways to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from mmexp.connector import Qformer, QformerConfig, QformerConnector
from mmexp.connector.qformer_layers import additive
from mmexp.contracts import EncoderSpec
from mmexp.errors import CheckpointError, ConfigError, SpliceError
from tests.differences import Differences

Variant = Literal["stripped", "text", "full"]
EVA = EncoderSpec(width=1408, grid=(16, 16), num_prefix=1)
SPEC = EncoderSpec(width=24, grid=(3, 3), num_prefix=1)
SIZES: dict[str, int] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
SWAPS = {
    "qformer.bert.embeddings.word_embeddings": "embeddings.word_embeddings",
    "qformer.bert.embeddings.position_embeddings": "embeddings.position_embeddings",
    "qformer.bert.encoder": "encoder",
    "attention.self": "attention.attention",
}


def tiny(variant: Variant, init: str | None = None) -> QformerConfig:
    return QformerConfig(
        variant=variant, init=init, num_queries=5, width=32, num_layers=4, num_heads=4, ffn_width=48, vocab_size=61,
        max_text_tokens=16, tokenizer="some/bert" if variant == "text" else None, max_instruction_tokens=16,
    )  # fmt: skip


def built(variant: Variant, llm_width: int = 12) -> QformerConnector:
    torch.manual_seed(0)
    module = tiny(variant).build(SPEC, llm_width).eval()
    for parameter in module.parameters():  # biases and norms that are not what a fresh module has
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def text() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[7, 8, 9, 10, 11, 12], [20, 21, 22, 0, 0, 0]])
    return ids, ids > 0


def features() -> torch.Tensor:
    return torch.randn(2, SPEC.num_patches, SPEC.width, generator=torch.Generator().manual_seed(1))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("variant", "expected"), [("stripped", 105_137_664), ("full", 186_282_811)])
def test_as_many_parameters_as_published(variant: Variant, expected: int) -> None:
    with torch.device("meta"):
        connector = QformerConfig(variant=variant).build(EVA, 0)
    assert count(connector.qformer) - connector.qformer.query_tokens.numel() == expected
    assert connector.qformer.query_tokens.shape == (1, 32, 768)


@pytest.mark.parametrize(
    ("variant", "llm_width", "total"),
    [
        ("stripped", 2560, 107_133_696),  # OPT 2.7B, published as 107M
        ("stripped", 4096, 108_314_880),  # OPT 6.7B and FlanT5-XXL, 108M
        ("text", 2048, 187_262_464),  # InstructBLIP with FlanT5-XL
        ("text", 4096, 188_837_376),
        ("text", 5120, 189_624_832),
    ],
)
def test_as_many_trained_parameters_as_published(variant: Variant, llm_width: int, total: int) -> None:
    with torch.device("meta"):
        tokenizer = "some/bert" if variant == "text" else None
        connector = QformerConfig(variant=variant, tokenizer=tokenizer).build(EVA, llm_width)
    ln_vision = 2 * EVA.width
    assert count(connector) + ln_vision == total
    assert [name for name, _ in connector.named_children()] == ["qformer", "proj"]


def test_names_are_those_of_lavis() -> None:
    names = set(built("full", 0).state_dict())
    layer = "qformer.bert.encoder.layer"
    assert {
        "qformer.query_tokens",
        "qformer.bert.embeddings.word_embeddings.weight",
        "qformer.bert.embeddings.position_embeddings.weight",
        "qformer.bert.embeddings.LayerNorm.weight",
        f"{layer}.0.attention.self.query.weight",
        f"{layer}.0.attention.output.LayerNorm.bias",
        f"{layer}.0.crossattention.self.key.weight",
        f"{layer}.1.intermediate_query.dense.weight",
        f"{layer}.1.output_query.LayerNorm.weight",
        f"{layer}.1.intermediate.dense.bias",
        f"{layer}.1.output.dense.weight",
        "qformer.cls.predictions.transform.dense.weight",
        "qformer.cls.predictions.transform.LayerNorm.weight",
        "qformer.cls.predictions.bias",
    } <= names
    assert not any("layer.1.crossattention" in name or "token_type" in name for name in names)


def _theirs(connector: QformerConnector, norm: str) -> dict[str, torch.Tensor]:
    """The Q-Former's weights under the names of transformers, where the first LayerNorm is called `norm`."""
    state = {}
    for name, tensor in connector.state_dict().items():
        if not name.startswith(("proj", "qformer.query_tokens")):
            for old, new in (SWAPS | {"qformer.bert.embeddings.LayerNorm": norm}).items():
                name = name.replace(old, new)
            state[name] = tensor
    return state


def test_without_text_equal_to_transformers(differences: Differences) -> None:
    from transformers import Blip2QFormerConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

    connector = built("stripped")
    config = Blip2QFormerConfig(vocab_size=61, encoder_hidden_size=SPEC.width, **SIZES)
    model = Blip2QFormerModel(config).eval()
    model.load_state_dict(_theirs(connector, "layernorm"))
    queries = connector.qformer.query_tokens.expand(2, -1, -1)
    expected = model(query_embeds=queries, encoder_hidden_states=features()).last_hidden_state
    differences("Blip2QFormerModel", "queries alone", connector.qformer(features()), expected, 1e-5, 1e-5)
    torch.testing.assert_close(connector(features()), connector.proj(expected), atol=1e-5, rtol=1e-5)


def test_with_text_equal_to_instructblip(differences: Differences) -> None:
    from transformers import InstructBlipQFormerConfig
    from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

    connector = built("text")
    config = InstructBlipQFormerConfig(
        vocab_size=61, encoder_hidden_size=SPEC.width, max_position_embeddings=16, **SIZES
    )
    model = InstructBlipQFormerModel(config).eval()
    problems = model.load_state_dict(_theirs(connector, "embeddings.layernorm"), strict=False)
    assert not problems.unexpected_keys
    assert set(problems.missing_keys) <= {"embeddings.position_ids"}
    ids, mask = text()
    queries = connector.qformer.query_tokens.expand(2, -1, -1)
    visible = torch.cat([torch.ones(2, 5, dtype=torch.long), mask.long()], 1)
    expected = model(ids, visible, query_embeds=queries, encoder_hidden_states=features()).last_hidden_state
    found = connector.qformer.look_and_read(features(), ids, mask)
    differences("InstructBlipQFormerModel", "queries and text", found, expected, 1e-5, 1e-5)
    torch.testing.assert_close(connector(features(), ids, mask), connector.proj(expected[:, :5]))


def test_reading_equal_to_the_retrieval_model() -> None:
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    connector = built("text")
    qformer = connector.qformer
    vision = {"hidden_size": SPEC.width, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Blip2Config(
        vision_config=vision,
        qformer_config=SIZES | {"vocab_size": 61, "encoder_hidden_size": SPEC.width, "use_qformer_text_input": True,
                                "max_position_embeddings": 16},
        image_text_hidden_size=8, num_query_tokens=5,
    )  # fmt: skip
    model = Blip2ForImageTextRetrieval(config).eval()
    problems = model.load_state_dict(_retrieval_names(connector), strict=False)
    assert not problems.unexpected_keys
    ids, mask = text()
    pixels = torch.randn(2, 3, 28, 28)
    seen: Any = model.vision_model(pixels).last_hidden_state
    matching = model(pixels, ids, mask.long(), use_image_text_matching_head=True).logits_per_image
    own = model.itm_head(qformer.look_and_read(seen, ids, mask)[:, :5]).mean(1)
    torch.testing.assert_close(own, matching, atol=1e-5, rtol=1e-5)
    contrast = model(pixels, ids, mask.long(), use_image_text_matching_head=False).logits_per_image
    image = torch.nn.functional.normalize(model.vision_projection(qformer.look(seen)[0]), dim=-1)
    said = torch.nn.functional.normalize(model.text_projection(qformer.read(ids, mask)[:, 0]), dim=-1)
    found = torch.einsum("iqw,tw->iqt", image, said).amax(1)
    torch.testing.assert_close(found, contrast, atol=1e-5, rtol=1e-5)


def _retrieval_names(connector: QformerConnector) -> dict[str, torch.Tensor]:
    state = _theirs(connector, "layernorm")
    named = {name if name.startswith("embeddings.") else f"qformer.{name}": tensor for name, tensor in state.items()}
    return named | {"query_tokens": connector.qformer.query_tokens.detach()}


def test_writing_behind_remembered_queries_equals_one_masked_pass() -> None:
    qformer = built("full", 0).qformer
    ids, mask = text()
    _, memory = qformer.look(features())
    queries, length = 5, ids.shape[1]
    visible = torch.zeros(2, queries + length, queries + length, dtype=torch.bool)
    visible[:, :, :queries] = True
    visible[:, queries:, queries:] = torch.ones(length, length).tril().bool() & mask[:, None]
    hidden = qformer.bert.embeddings(qformer.query_tokens.expand(2, -1, -1), ids)
    once, _ = qformer.bert.encoder(hidden, queries, features(), additive(visible[:, None], hidden.dtype))
    torch.testing.assert_close(qformer.write(ids, mask, memory)[mask], once[:, queries:][mask], atol=1e-5, rtol=1e-5)
    assert qformer.words(once).shape == (2, queries + length, 61)


def test_padding_and_later_words_are_not_seen() -> None:
    qformer = built("full", 0).qformer
    ids, mask = text()
    other = ids.masked_fill(~mask, 33)
    torch.testing.assert_close(qformer.read(ids, mask)[mask], qformer.read(other, mask)[mask])
    torch.testing.assert_close(qformer(features(), ids, mask), qformer(features(), other, mask))
    _, memory = qformer.look(features())
    later = ids.clone()
    later[:, 2] = 40
    torch.testing.assert_close(qformer.write(ids, mask, memory)[:, :2], qformer.write(later, mask, memory)[:, :2])


def test_a_stripped_one_asked_for_text_says_what_to_use() -> None:
    ids, mask = text()
    with pytest.raises(ConfigError, match="connector=qformer_text or connector=qformer_full"):
        built("stripped").qformer.read(ids, mask)
    with pytest.raises(ConfigError, match="connector=qformer_full"):
        built("text").qformer.words(torch.zeros(1, 32))


def _bert(folder: Path, **other: int) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    sizes = SIZES | {"vocab_size": 60, "max_position_embeddings": 16} | other
    bert = BertForMaskedLM(BertConfig(**sizes))  # pyright: ignore[reportArgumentType]
    for parameter in bert.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    bert.save_pretrained(folder)
    return bert


def test_starts_from_bert(tmp_path: Path) -> None:
    bert = _bert(tmp_path)
    qformer: Qformer = tiny("full", str(tmp_path)).build(SPEC, 0).eval().qformer
    layer: Any = qformer.bert.encoder.layer[0]
    assert torch.equal(layer.output_query.dense.weight, bert.bert.encoder.layer[0].output.dense.weight)
    assert torch.equal(layer.output_query.LayerNorm.bias, layer.output.LayerNorm.bias)
    assert torch.equal(layer.intermediate_query.dense.bias, layer.intermediate.dense.bias)
    with torch.no_grad():
        bert.bert.embeddings.token_type_embeddings.weight.zero_()  # the Q-Former has none
    ids, mask = text()
    read = qformer.read(ids, mask)
    torch.testing.assert_close(read, bert.bert.eval()(ids, mask.long()).last_hidden_state, atol=1e-5, rtol=1e-5)
    logits = bert(ids, mask.long()).logits
    torch.testing.assert_close(qformer.words(read)[..., :60], logits, atol=1e-4, rtol=1e-4)
    assert tiny("stripped", str(tmp_path)).build(SPEC, 8).qformer.query_tokens.std() < 0.03


def test_bert_of_another_size_is_refused(tmp_path: Path) -> None:
    _bert(tmp_path, intermediate_size=40)
    with pytest.raises(CheckpointError, match="intermediate_size 40, here 48"):
        tiny("full", str(tmp_path)).build(SPEC, 0)
    with torch.device("meta"):
        tiny("full", str(tmp_path)).build(SPEC, 0)  # a plan reads no weights


@pytest.mark.parametrize("wrong", [{"width": 30}, {"num_queries": 0}, {"cross_every": 0}])
def test_sizes_that_cannot_be_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"connector.{next(iter(wrong))}"):
        QformerConfig(**wrong).build(SPEC, 8)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        ({}, "connector.tokenizer", "has no tokenizer"),
        ({"variant": "stripped", "tokenizer": "some/bert"}, "connector.tokenizer", "reads no instruction"),
        ({"tokenizer": "some/bert", "max_instruction_tokens": 513}, "connector.max_instruction_tokens", "3 to 512"),
        ({"tokenizer": "some/bert", "max_instruction_tokens": 2}, "connector.max_instruction_tokens", "3 to 512"),
    ],
)
def test_an_instruction_that_cannot_be_read_is_refused(settings: dict[str, Any], where: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error, torch.device("meta"):
        QformerConfig(**{"variant": "text", **settings}).build(EVA, 4096)
    assert error.value.where == where


def test_without_an_llm_text_comes_from_the_objective() -> None:
    assert not QformerConfig(variant="text").build(SPEC, 0).reads_instruction


def test_queries_trained_beside_text_never_run_alone() -> None:
    with pytest.raises(SpliceError, match="without an instruction"):
        built("text")(features())
