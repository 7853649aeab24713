"""Ids and labels of every further template against the published preprocessing, on real conversations."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from mmexp.contracts import IGNORE, Medium, Text, Turn
from mmexp.data.readers.llava import _images, _turns
from mmexp.prompt import SegmentTokenizer
from mmexp.prompt.render import choose
from tests.prompt import reference_chat as published
from tests.prompt.reference import IMAGE
from tests.shared_data import load_rows, load_template, load_tokenizer, segment_tokenizer, shared

INSTRUCT = ("annotations", "llava_instruct.json")
FILES = [
    INSTRUCT,
    ("text", "llava_qa90_conversations.json"),
    ("text", "mllm_demo_conversations.json"),
    ("text", "vicuna_dummy_conversations.json"),
]


def built(name: str, template: str) -> SegmentTokenizer:
    return segment_tokenizer(name, *load_template(template).new_tokens)


def ours(name: str, template: str, turns, key: str = "") -> tuple[list[int], list[int]]:
    settings, tokenizer = load_template(template), built(name, template)
    encoded = tokenizer.encode(settings.render(turns, key=key), {"image": 1})
    encoded.limit_answers(settings.max_answer_tokens, settings.answer_cut)
    for run in encoded.runs:
        encoded.ids[run.start] = IMAGE
    pairs = zip(encoded.ids, encoded.supervised, strict=True)
    return encoded.ids, [index if supervised else IGNORE for index, supervised in pairs]


def rows(*, pictures: bool = True):
    """Conversations of all files that the references can state: at most one picture a turn, pairs of turns."""
    for file in FILES:
        for row in load_rows(*file)[:40]:
            values = [turn["value"] for turn in row["conversations"]]
            marks = [value.count("<image>") for value in values]
            if max(marks) <= int(pictures) and len(values) % 2 == 0:
                yield row


def turns_of(row):
    return _turns(row, _images(row))


def assert_equal(found, expected, row) -> None:
    assert found[0] == list(expected[0]), row["id"]
    assert found[1] == list(expected[1]), row["id"]


def test_vicuna_v0():
    """The published code counts the lengths of blocks tokenised alone, each with a BOS that makes up for the cut."""
    llama, system = load_tokenizer("llama2"), load_template("vicuna_v0").default_system
    compared = 0
    for row in rows():
        expected = published.vicuna_v0(row["conversations"], llama, system)
        assert_equal(ours("llama2", "vicuna_v0", turns_of(row)), expected, row)
        compared += 1
    assert compared > 100


def test_llama2():
    llama, system = load_tokenizer("llama2"), load_template("llama2").default_system
    for row in rows():
        expected = published.llama_2(row["conversations"], llama, system)
        assert_equal(ours("llama2", "llama2", turns_of(row)), expected, row)


def test_mistral():
    llama = load_tokenizer("llama2")
    for row in rows():
        expected, spans, text = published.mistral(row["conversations"], llama)
        ids, labels = ours("llama2", "mistral", turns_of(row))
        assert ids == expected
        answers = [text[start:end].strip() for start, end in spans]
        shown = llama.decode([label for label in labels if label != IGNORE])
        assert "".join(shown.split()) == "".join("".join(answers).split())


@pytest.mark.parametrize("name", ["minigpt4", "minigpt4_llama2"])
def test_minigpt4_with_the_words_of_the_data(name):
    llama = load_tokenizer("llama2")
    for row in load_rows(*INSTRUCT):
        first = row["conversations"][:2]
        expected = getattr(published, name)(first, llama, 160)
        assert_equal(ours("llama2", name, _turns({"conversations": first}, _images(row))), expected, row)


@pytest.mark.parametrize("name", ["minigpt4", "minigpt4_llama2"])
def test_minigpt4_draws_a_prompt_for_captions(name):
    llama, template = load_tokenizer("llama2"), load_template(name)
    drawn = set()
    for row in load_rows("annotations", "minigpt4_align.json")["annotations"]:
        key = str(row["image_id"])
        prompt = choose(template.prompts, key)
        turns = [
            Turn(role="user", parts=(Medium(source="x.jpg"),)),
            Turn(role="assistant", parts=(Text(text=row["caption"]),)),
        ]
        exchange = [{"value": "<image>"}, {"value": row["caption"]}]
        expected = getattr(published, name)(exchange, llama, 160, prompt)
        assert_equal(ours("llama2", name, turns, key), expected, {"id": key})
        drawn.add(prompt)
    assert drawn == set(template.prompts)


def test_minigpt4_prompts_are_those_of_the_repository():
    lines = shared("text", "minigpt4_alignment_prompts.txt").read_text().splitlines()
    assert [line.removeprefix("<Img><ImageHere></Img> ") for line in lines] == list(load_template("minigpt4").prompts)


def test_minigpt4_align_cuts_the_newline_with_the_caption():
    llama, cut = load_tokenizer("llama2"), 0
    for row in load_rows("annotations", "minigpt4_align.json")["annotations"]:
        turns = [
            Turn(role="user", parts=(Text(text="Say what it shows. "), Medium(source="x.jpg"))),
            Turn(role="assistant", parts=(Text(text=row["caption"]),)),
        ]
        expected = published.minigpt4_align(row["caption"], llama, 32)
        assert_equal(ours("llama2", "minigpt4_align", turns), expected, row | {"id": row["image_id"]})
        cut += expected[0][-1] != 13
    assert cut, "no caption of the file is longer than the limit"


def test_minigptv2():
    llama = load_tokenizer("llama2")
    for row in rows():
        conversation = [{**t, "value": t["value"].strip()} for t in row["conversations"]]
        expected = published.minigptv2(conversation, llama)
        if max(map(len, expected)) < 1024:
            assert_equal(ours("llama2", "minigptv2", turns_of(row)), expected, row)


@pytest.mark.parametrize(("template", "prompt"), [("blip2_align", ""), ("blip2_caption", "a photo of")])
def test_blip2_captions(template, prompt):
    opt = load_tokenizer("opt")
    for row in load_rows("annotations", "llava_pretrain.json"):
        caption = row["conversations"][1]["value"]
        counted = len(opt(prompt).input_ids) if prompt else 0
        text = f"{prompt} {caption}\n" if prompt else f"{caption}\n"
        expected = published.blip2(text, opt, counted, 32 + counted)
        assert_equal(ours("opt", template, turns_of(row)), expected, row)


def test_blip2_questions():
    opt = load_tokenizer("opt")
    for row in load_rows(*INSTRUCT):
        question, answer = (turn["value"] for turn in row["conversations"][:2])
        asked = f"Question: {question.replace('<image>', '').strip()} Answer:"
        expected = published.blip2(f"{asked} {answer}\n", opt, len(opt(asked).input_ids), 2048)
        turns = _turns({"conversations": row["conversations"][:2]}, _images(row))
        assert_equal(ours("opt", "blip2_vqa", turns), expected, row)


def test_qwen_vl():
    qwen, system = load_tokenizer("qwen"), load_template("qwen_vl").default_system
    for row in rows():
        expected = published.qwen_vl(row["conversations"], qwen, system)
        assert_equal(ours("qwen", "qwen_vl", turns_of(row)), expected, row)


def test_qwen_vl_base():
    qwen = load_tokenizer("qwen")
    for row in rows():
        values = [turn["value"] for turn in row["conversations"]]
        if any(value.count("<image>") > 1 for value in values):
            continue
        expected = published.qwen_vl_base(row["conversations"], qwen)
        assert_equal(ours("qwen", "qwen_vl_base", turns_of(row)), expected, row)


@pytest.mark.parametrize(
    ("template", "tokenizer", "newline"),
    [("internlm2", "internlm2", ""), ("internvl2_5", "internlm2", "\n"), ("internvl2_5", "qwen", "\n")],
)
def test_internvl(template, tokenizer, newline):
    settings, hf = load_template(template), built(tokenizer, template).hf
    for row in rows():
        expected = published.internvl(row["conversations"], hf, settings.default_system, newline)
        assert_equal(ours(tokenizer, template, turns_of(row)), expected, row)


def test_qwen25_is_chatml_with_another_system_text():
    qwen25, chatml = load_template("qwen25"), load_template("chatml")
    assert replace(qwen25, name="chatml", default_system=chatml.default_system) == chatml
    assert qwen25.default_system.startswith("You are Qwen")


def test_llama3():
    """No Llama-3 vocabulary is here: its special tokens on another byte-level one give the same borders."""
    template, qwen = load_template("llama3"), copy.deepcopy(load_tokenizer("qwen"))
    qwen.add_tokens(list(template.controls), special_tokens=True)
    tokenizer = SegmentTokenizer(qwen)
    for row in rows(pictures=False):
        text, spans = f"<|begin_of_text|>{head('system')}{template.default_system}<|eot_id|>", []
        for question, answer in published.said(row["conversations"]):
            text += f"{head('user')}{question.strip()}<|eot_id|>{head('assistant')}{answer.strip()}<|eot_id|>"
            spans.append(f"{answer.strip()}<|eot_id|>")
        encoded = tokenizer.encode(template.render(turns_of(row)), {})
        assert encoded.ids == qwen(text).input_ids
        shown = [index for index, flag in zip(encoded.ids, encoded.supervised, strict=True) if flag]
        assert qwen.decode(shown) == "".join(spans)


def head(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"
