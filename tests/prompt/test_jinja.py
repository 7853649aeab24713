"""The exported Jinja template gives our ids; what it cannot express is refused."""

from __future__ import annotations

import pytest

from mmexp.contracts import Medium, Text, Turn
from mmexp.data.readers.llava import _images, _turns
from mmexp.errors import ConfigError
from mmexp.prompt import to_jinja
from tests.shared_data import load_rows, load_template, segment_tokenizer

PAIRS = [
    ("vicuna_v0", "llama2"),
    ("vicuna_v1", "llama2"),
    ("llava_v1", "llama2"),
    ("plain", "llama2"),
    ("llama2", "llama2"),
    ("mistral", "llama2"),
    ("minigptv2", "llama2"),
    ("minigpt4_align", "llama2"),
    ("blip2_align", "opt"),
    ("blip2_caption", "opt"),
    ("blip2_vqa", "opt"),
    ("qwen_vl", "qwen"),
    ("qwen25", "qwen"),
    ("chatml", "qwen"),
    ("internlm2", "internlm2"),
    ("internvl2_5", "internlm2"),
    ("internvl2_5", "qwen"),
]
PICTURE = Medium(source="x.jpg")


def exported(template_name: str, tokenizer_name: str):
    """The template, our tokenizer, where `<image>` is a token, and the export."""
    template = load_template(template_name)
    own = segment_tokenizer(tokenizer_name, *template.new_tokens, "<image>")
    return template, own, to_jinja(template, own)


def as_messages(turns: list[Turn]) -> list[dict]:
    """A text where there is no medium, else a list of parts."""
    return [
        {
            "role": turn.role,
            "content": turn.text
            if not turn.media
            else [{"type": "text", "text": p.text} if isinstance(p, Text) else {"type": "image"} for p in turn.parts],
        }
        for turn in turns
    ]


def assert_same(template, own, jinja, turns, generation: bool = False) -> None:
    encoded = own.encode(template.render(turns, generation), {"image": 1})
    for run in encoded.runs:
        encoded.ids[run.start] = own.control_id("<image>")
    ids = own.hf.apply_chat_template(as_messages(turns), chat_template=jinja, add_generation_prompt=generation)
    assert encoded.ids == ids["input_ids"]


@pytest.mark.parametrize(("template_name", "tokenizer_name"), PAIRS)
def test_real_conversations_get_our_ids(template_name, tokenizer_name):
    parts = exported(template_name, tokenizer_name)
    rows = (
        load_rows("text", "vicuna_dummy_conversations.json")[:20]
        + load_rows("text", "llava_qa90_conversations.json")[:5]
    )
    rows += load_rows("annotations", "llava_instruct.json")[:10] + load_rows("text", "mllm_demo_conversations.json")
    for row in rows:
        turns = list(_turns(row, _images(row)))
        assert_same(*parts, turns)
        assert_same(*parts, turns[:-1], generation=True)


@pytest.mark.parametrize(("template_name", "tokenizer_name"), PAIRS)
def test_system_texts_and_odd_spaces(template_name, tokenizer_name):
    parts = exported(template_name, tokenizer_name)
    turns = [
        Turn(role="system", parts=(Text(text='Be "brief", {please}.\\n\n\u4f60\u597d \U0001f984'),)),
        Turn(role="user", parts=(Text(text="  two before, and a newline\n"),)),
        Turn(role="assistant", parts=(Text(text=" one before"),)),
        Turn(role="user", parts=(PICTURE, Text(text="\nand "), PICTURE, Text(text="?"))),
        Turn(role="assistant", parts=(Text(text="yes"),)),
    ]
    assert_same(*parts, turns)
    assert_same(*parts, turns[1:])
    assert_same(*parts, turns[:2], generation=True)


def test_sampled_prompts_cannot_be_exported():
    tokenizer = segment_tokenizer("llama2")
    with pytest.raises(ConfigError, match="draws one of 4 prompts") as error:
        to_jinja(load_template("minigpt4"), tokenizer)
    assert error.value.where == "template.prompts"
    assert error.value.fix


def test_a_part_tokenised_apart_behind_a_space_cannot_be_exported():
    """MiniGPT-4's answer: two spaces in one string are one token of Llama's."""
    tokenizer = segment_tokenizer("llama2")
    with pytest.raises(ConfigError, match="apart from the space") as error:
        to_jinja(load_template("minigpt4", prompts=()), tokenizer)
    assert error.value.where == "template.assistant_answer"
    assert to_jinja(load_template("minigpt4", prompts=()), segment_tokenizer("opt"))


def test_roles_out_of_order_are_refused():
    _, own, jinja = exported("chatml", "qwen")
    with pytest.raises(Exception, match="alternation"):
        own.hf.apply_chat_template([{"role": "assistant", "content": "a"}], chat_template=jinja, tokenize=False)
