"""The instruction on its way: processor, batch, Q-Former; as transformers' InstructBLIP reads it, and never shared."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch.nn import functional

from mmexp.connector import QformerConfig
from mmexp.contracts import Item, Medium, Region, Sample, Text, Turn
from mmexp.data import Collator
from mmexp.encoder import LavisVisionConfig
from mmexp.engine import Generator
from mmexp.errors import ConfigError
from mmexp.hf import load_foreign
from mmexp.llm import CausalConfig, Sampling, TinyLlmConfig
from mmexp.model import InputPlan, MultimodalModel, Plan
from mmexp.prompt import DynamicTiles, InstructionTokenizer
from tests.assets.make_bert import make_tokenizer
from tests.differences import Differences
from tests.shared_data import load_template, shared

CLASS = "InstructBlipForConditionalGeneration (words)"
WORDS = 95
SAID = "a blue one"
LLAMA = transformers.LlamaConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_key_value_heads=2,
    vocab_size=259, max_position_embeddings=256,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A published InstructBLIP of random weights, its LLM alone, and both tokenizers."""
    root = tmp_path_factory.mktemp("instruct")
    config = transformers.InstructBlipConfig(
        vision_config={"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 28, "patch_size": 7},
        qformer_config={"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
                        "vocab_size": WORDS, "max_position_embeddings": 40},
        text_config=LLAMA.to_dict(), num_query_tokens=4, image_token_index=258,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs: Any = transformers.InstructBlipForConditionalGeneration(config)
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1
        if name.endswith("self_attn.qkv.bias"):
            parameter.data.chunk(3)[1].zero_()
    theirs.save_pretrained(root / "published")
    theirs.language_model.save_pretrained(root / "llm")
    TinyLlmConfig().load_tokenizer().save_pretrained(root / "llm")
    make_tokenizer(root / "bert")
    return {name: root / name for name in ("published", "llm", "bert")}


def plan(folders: dict[str, Path], max_tokens: int = 40, **changes: Any) -> Plan:
    encoder = LavisVisionConfig(path="", from_scratch=True, width=24, num_blocks=2, num_heads=2, mlp_width=36,
                                patch_size_px=7, image_size_px=28)  # fmt: skip
    settings = {"variant": "text", "tokenizer": str(folders["bert"]), "max_instruction_tokens": max_tokens}
    settings |= {"vocab_size": WORDS} | changes.pop("connector", {})
    connector = QformerConfig(num_queries=4, width=16, num_layers=3, num_heads=2, ffn_width=32, max_text_tokens=40,
                              dropout=0.0, **settings)  # fmt: skip
    return Plan(inputs={"image": InputPlan(encoder=encoder, connector=connector)}, image_fit="squash",
                llm=CausalConfig(path=str(folders["llm"])), max_length_tokens=250,
                **{"template": load_template("instructblip"), **changes})  # fmt: skip


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> MultimodalModel:
    made = plan(folders).build().eval()
    load_foreign(made.parts(), folders["published"])
    return made


def picture(colour: tuple[int, int, int] = (200, 60, 30)) -> Image.Image:
    image = Image.new("RGB", (60, 44), colour)
    image.paste((20, 60, 230), (10, 10, 30, 40))
    return image


def sample(question: str, image: Any = None, answer: str = SAID, name: str = "s") -> Sample:
    shown = () if image is None else (Medium(source=image),)
    asked = Turn(role="user", parts=(*shown, Text(text=question)))
    said = (Turn(role="assistant", parts=(Text(text=answer),)),) if answer else ()
    return Sample(id=name, turns=(asked, *said))


def batch_of(plan: Plan, *samples: Sample, row: str = "padded") -> Any:
    return Collator(pad_id=plan.tokenizer.pad_id, row=row)([plan.processor.encode(each) for each in samples])


def reading(item: Item) -> list[int]:
    (ids,) = item.instructions["image"]
    return ids.tolist()


@torch.no_grad()
def test_real_questions_through_our_processor(
    differences: Differences, folders: dict[str, Path], model: MultimodalModel
) -> None:
    """Their processor's idea of the Q-Former's text, their class, and ours end to end; of unequal lengths."""
    theirs: Any = transformers.InstructBlipForConditionalGeneration.from_pretrained(folders["published"]).eval()
    theirs.vision_model.post_layernorm.eps = 1e-5  # LAVIS's; transformers has 1e-6 there
    first, image = plan(folders), picture()
    asked = ("Is the star red?", "Where is the blue circle, and on what?")
    batch = batch_of(first, *(sample(text, image) for text in asked))
    bert = transformers.AutoTokenizer.from_pretrained(folders["bert"])
    read = bert(list(asked), padding="longest", return_tensors="pt")
    assert torch.equal(batch.instructions["image"] * batch.instruction_masks["image"], read.input_ids)
    assert torch.equal(batch.instruction_masks["image"], read.attention_mask.bool())
    seen = {"qformer_input_ids": read.input_ids, "qformer_attention_mask": read.attention_mask}
    expected = theirs.get_image_features(pixel_values=batch.media["image"], **seen).pooler_output
    output = model(batch)
    differences(CLASS, "soft tokens", output.soft["image"], expected)
    ids = batch.input_ids.masked_fill(batch.slots["image"], 258)
    mask = torch.zeros_like(ids)
    for row, _, end in batch.spans():
        mask[row, :end] = 1
    reference = theirs(pixel_values=batch.media["image"], input_ids=ids, attention_mask=mask, **seen).logits
    kept = mask.bool()
    differences(CLASS, "logits", model.llm.logits(output.hidden)[kept], reference[kept])
    log = functional.log_softmax(reference[:, :-1].float(), -1)
    labels = batch.labels[:, 1:]
    scores = [float(log[row].gather(1, labels[row].clamp(min=0)[:, None])[labels[row] >= 0].sum()) for row in (0, 1)]
    assert model.score(batch) == pytest.approx(scores, abs=1e-3)


def test_the_published_tokenizer_reads_as_transformers_cuts() -> None:
    bert = transformers.AutoTokenizer.from_pretrained(shared("tokenizers", "bert-base-uncased"))
    ours = InstructionTokenizer(bert, QformerConfig(variant="text", tokenizer="b").instruction())  # type: ignore[arg-type]
    bert.truncation_side = "left"
    for text in ("What is unusual about this image?", "Who's there? " * 60, "", "  a\nb  "):
        expected = bert(text, truncation=True, max_length=128).input_ids
        assert list(ours.encode(text)) == expected
    assert len(ours.encode("Who's there? " * 60)) == 128
    marked = pickle.loads(pickle.dumps(ours)).encode("a [SEP] b")
    assert marked.count(bert.sep_token_id) == 1


def test_two_questions_have_two_sets_of_soft_tokens(folders: dict[str, Path], model: MultimodalModel) -> None:
    first, image = plan(folders), picture()
    asked = [sample(text, image) for text in ("Is the star red?", "Where is the circle?", "Is the star red?")]
    soft = model(batch_of(first, *asked)).soft["image"]
    assert torch.equal(soft[0], soft[2])
    assert (soft[0] - soft[1]).abs().max() > 0.05
    alone = torch.cat([model(batch_of(first, each, row="flat")).soft["image"] for each in asked])
    assert torch.allclose(soft, alone, atol=1e-5)  # padding behind a shorter one changes nothing


def test_what_is_read_is_the_turn_of_the_picture_without_answers(folders: dict[str, Path]) -> None:
    vqa = load_template("blip2_vqa", default_system="A chat.")
    first = plan(folders, template=vqa)
    ids = first.inputs["image"].instruction_tokenizer
    assert ids is not None
    both = sample("Is it a star?", picture()).turns + sample("And now?").turns
    trained = first.processor.encode(Sample(id="s", turns=both))
    asked = first.processor.encode_prompt(both[:1])
    assert reading(trained) == reading(asked) == list(ids.encode("Question: Is it a star? Answer:"))
    region = Region(boxes=((0.0, 0.0, 0.5, 0.5),), phrase="the star")
    boxed = Turn(role="user", parts=(Medium(source=picture()), Text(text="Is "), region))
    assert len(reading(first.processor.encode_prompt((boxed,)))) > len(ids.encode("Question: Is the star Answer:"))


def test_prompts_about_one_picture_are_grouped_by_instruction(
    folders: dict[str, Path], model: MultimodalModel, tmp_path: Path
) -> None:
    picture().save(tmp_path / "a.png")
    first, sampling = plan(folders), Sampling(max_new_tokens=8)
    asked = [sample(text, tmp_path / "a.png", "", f"s{index}")
             for index, text in enumerate(("Is it red?", "Where?", "Is it red?", "And on what?"))]  # fmt: skip
    generator = Generator(model, first)
    looked: list[int] = []
    hook = model.inputs["image"].register_forward_pre_hook(lambda module, args: looked.append(len(args[0])))
    together = generator.predict(asked, sampling)
    hook.remove()
    assert looked == [3]
    assert together == [generator.predict([each], sampling)[0] for each in asked]
    assert len(set(together)) == 3


def test_views_of_one_picture_read_the_same(folders: dict[str, Path]) -> None:
    first = plan(folders, tiling=DynamicTiles())
    wide = Image.new("RGB", (112, 28))
    batch = batch_of(first, sample("Is the star red?", wide), sample("Where?", picture()))
    views = batch.views["image"]
    assert len(batch.instructions["image"]) == len(batch.media["image"]) == sum(views) > 2
    rows = batch.instructions["image"][: views[0]]
    assert torch.equal(rows, rows[:1].expand_as(rows))


def test_a_few_steps_move_the_text_path(folders: dict[str, Path]) -> None:
    """With a picture, and then without one, where every weight still has part."""
    first = plan(folders)
    model = first.build()
    connector: Any = model.inputs["image"].connector
    before = {name: value.clone() for name, value in connector.state_dict().items()}
    optimiser = torch.optim.AdamW(connector.parameters(), lr=1e-2, weight_decay=0.0)
    batch = batch_of(first, sample("Is the star red?", picture()), sample("Where?", picture((0, 90, 0)), "on it"))
    for _ in range(3):
        optimiser.zero_grad()
        output = model(batch)
        logits = model.llm.logits(output.hidden)[:, :-1]
        functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100).backward()
        optimiser.step()
    with_picture = {name for name, each in connector.named_parameters() if each.grad is not None}
    moved = {name for name, value in connector.state_dict().items() if not torch.equal(value, before[name])}
    layers = [
        f"bert.encoder.layer.{index}.{part}.dense.weight" for index in (0, 1) for part in ("intermediate", "output")
    ]
    text = {"bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight", *layers}
    assert {f"qformer.{name}" for name in text} <= moved
    optimiser.zero_grad()
    model(batch_of(first, sample("Hello", None))).hidden.sum().backward()
    assert {name for name, each in connector.named_parameters() if each.grad is not None} == with_picture


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"tokenizer": None}, "connector.tokenizer", "has no tokenizer"),
        ({"tokenizer": "/no/such/bert"}, "connector.tokenizer", "no such folder"),
        ({"vocab_size": 50}, "connector.tokenizer", "has 89 tokens"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_before_weights(
    folders: dict[str, Path], changes: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        _ = plan(folders, connector=changes).processor
    assert error.value.where == where
