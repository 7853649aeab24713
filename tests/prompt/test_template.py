"""Templates as data: parsing, arrangement of media, and what is supervised."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmexp.contracts import Medium, Text, Turn
from mmexp.errors import ConfigError
from mmexp.prompt import ChatTemplate
from tests.shared_data import ROOT, load_template

PICTURE, OTHER = Medium(source="a.png"), Medium(source="b.png")


def turn(role, *parts):
    return Turn(role=role, parts=tuple(Text(text=part) if isinstance(part, str) else part for part in parts))


def written(segments) -> str:
    return "".join(
        f"<{segment.control}>" if segment.control else "[img]" if segment.medium else segment.text
        for segment in segments
    )


def test_published_form_of_two_rounds(vicuna):
    turns = [turn("user", "q1"), turn("assistant", "a1"), turn("user", "q2"), turn("assistant", "a2")]
    assert written(vicuna.render(turns)) == (
        f"<bos>{vicuna.default_system} USER: q1 ASSISTANT: a1<eos>USER: q2 ASSISTANT: a2<eos>"
    )
    supervised = [segment for segment in vicuna.render(turns) if segment.supervised]
    assert written(supervised) == " a1<eos> a2<eos>"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["What?\n", PICTURE], "[img]\nWhat?"),
        (["see ", PICTURE, " there"], "[img]\nsee  there"),
        ([PICTURE], "[img]"),
        ([PICTURE, "\n", OTHER, " both?"], "[img]\n[img] both?"),
        (["no picture "], "no picture "),
    ],
)
def test_only_medium_of_a_turn_goes_to_the_front(vicuna, parts, expected):
    text = written(vicuna.render([turn("user", *parts)], generation_prompt=True))
    assert text.endswith(f"USER: {expected} ASSISTANT:")


def test_plain_keeps_only_pictures_and_answers(plain):
    turns = [turn("user", "Describe.\n", PICTURE), turn("assistant", "A cat.")]
    assert written(plain.render(turns)) == "<bos>[img]A cat.\n"
    assert plain.stop == "\n"


def test_system_turn_of_the_data_replaces_the_default(vicuna):
    text = written(vicuna.render([turn("system", "Be brief."), turn("user", "q")], generation_prompt=True))
    assert text == "<bos>Be brief. USER: q ASSISTANT:"


def test_answer_without_text_supervises_nothing(vicuna):
    segments = vicuna.render([turn("user", "q"), turn("assistant", "  ")])
    assert not any(segment.supervised for segment in segments)


def test_strip_removes_only_outer_white_space(chatml):
    text = written(chatml.render([turn("user", " \n", " a ", PICTURE, " b \n"), turn("assistant", "\n\nx y ")]))
    assert "user\na [img] b<<|im_end|>>" in text
    assert text.endswith("assistant\nx y<<|im_end|>>\n")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"user": "USER: {turn"}, "template.user"),
        ({"user": "USER:"}, "template.user"),
        ({"assistant_answer": "{turn}{turn}"}, "template.assistant_answer"),
        ({"begin": "{turn}"}, "template.begin"),
        ({"media": "front"}, "template.media"),
        ({"medium": "<Img>"}, "template.medium"),
        ({"user": "{number}{turn}"}, "template.user"),
        ({"next_user": "x"}, "template.next_user"),
        ({"begin_place": "after_media"}, "template.media"),
        ({"assistant_answer": "{prefix}{turn}"}, "template.assistant_answer"),
        ({"supervise": "first"}, "template.supervise"),
        ({"max_answer_tokens": 0}, "template.max_answer_tokens"),
        ({"prompts": (" ",)}, "template.prompts"),
    ],
)
def test_bad_format_names_its_field(changes, where):
    with pytest.raises(ConfigError) as error:
        ChatTemplate(name="x", **changes)
    assert error.value.where == where
    assert error.value.expected


def test_braces_can_be_written():
    template = ChatTemplate(name="x", begin="{{a}}", user="{turn}")
    assert written(template.render([turn("user", "{bos}")])) == "{a}{bos}"


SHIPPED = sorted(file.stem for file in (ROOT / "conf/template").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_templates_are_different_ones_and_named_as_their_file(name):
    template = load_template(name)
    assert template.name == name
    others = (load_template(other) for other in SHIPPED if other != name)
    assert not any(replace(other, name=name) == template for other in others)


TWO_ROUNDS = [
    turn("user", PICTURE, "\nq1"),
    turn("assistant", "a1"),
    turn("user", "q2"),
    turn("assistant", "a2"),
]
FORMS = {
    "vicuna_v0": "<bos>S\n\n### Human: [img]\nq1\n### Assistant: a1\n### Human: q2\n### Assistant: a2\n### ",
    "llama2": "<bos>[INST] <<SYS>>\nS\n<</SYS>>\n\n[img]\nq1 [/INST] a1 <eos><bos>[INST] q2 [/INST] a2 <eos>",
    "mistral": "<bos>[INST] <<SYS>>\nS\n<</SYS>>\n\n[img]\nq1 [/INST] a1 <eos>[INST] q2 [/INST] a2 <eos>",
    "minigptv2": "<bos>[INST] S <Img>[img]</Img> q1  [/INST]a1<eos><bos>[INST] q2  [/INST]a2<eos>",
    "blip2_vqa": "S [img]<bos>Question: q1 Answer: a1\nQuestion: q2 Answer: a2\n",
    "blip2_t5_vqa": "S [img]Question: q1 Short answer:<eos>a1<eos>Question: q2 Short answer:<eos>a2<eos>",
    "instructblip": "S [img]<bos>q1a1<eos> q2a2<eos>",
    "instructblip_t5": "S [img]q1<eos>a1<eos> q2<eos>a2<eos>",
    "internlm2": "<bos?><|im_start|>system\nS<|im_end|><|im_start|>user\n<img>[img]</img>\nq1<|im_end|>"
    "<|im_start|>assistant\na1<|im_end|><|im_start|>user\nq2<|im_end|><|im_start|>assistant\na2<|im_end|>",
    "qwen_vl": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nPicture 1: <img>[img]</img>\nq1<|im_end|>\n"
    "<|im_start|>assistant\na1<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n",
}
MARKS = {"<|im_start|>", "<|im_end|>", "<img>", "</img>"}


@pytest.mark.parametrize("name", FORMS)
def test_two_rounds_in_every_form(name):
    text = written(load_template(name).render([turn("system", "S"), *TWO_ROUNDS]))
    for mark in MARKS:
        text = text.replace(f"<{mark}>", mark)
    assert text == FORMS[name]


def test_minigpt4_has_one_end_mark_between_rounds():
    text = written(load_template("minigpt4").render(TWO_ROUNDS))
    assert text == "<bos>###Human: <Img>[img]</Img> q1 ###Assistant: a1###Human: q2 ###Assistant: a2###"


def test_pictures_are_counted_over_the_whole_conversation():
    turns = [
        turn("user", PICTURE, "\n", OTHER, "\nboth?"),
        turn("assistant", "yes"),
        turn("user", "and ", PICTURE, " here?"),
    ]
    text = written(load_template("qwen_vl").render(turns, generation_prompt=True)).replace("<<img>>", "<i>")
    assert "Picture 1: <i>[img]<</img>>\nPicture 2: <i>[img]<</img>>\nboth?" in text
    assert "Picture 3: <i>[img]<</img>>\nand  here?" in text


def test_a_prompt_is_drawn_once_per_sample_and_only_where_nothing_is_said():
    template = load_template("minigpt4")
    texts = [written(template.render([turn("user", PICTURE)], True, key=str(number))) for number in range(60)]
    assert texts[:20] == [written(template.render([turn("user", PICTURE)], True, key=str(n))) for n in range(20)]
    found = {text.split("</Img> ")[1].removesuffix(" ###Assistant: ") for text in texts}
    assert found == set(template.prompts)
    assert "mine" in written(template.render([turn("user", PICTURE, "mine")], True))
    assert "mine" not in written(
        load_template("minigpt4", user_text="drop").render([turn("user", PICTURE, "mine")], True)
    )


def test_only_the_last_answer_is_written_by_an_encoder_decoder():
    segments = load_template("blip2_t5_vqa").render(TWO_ROUNDS)
    assert written(segment for segment in segments if segment.supervised) == "a2<eos>"


def test_first_words_of_a_caption_go_to_its_prompt():
    template = load_template("blip2_t5_align")
    caption = [turn("user", "Say it.", PICTURE), turn("assistant", "a red  cat on a mat")]
    found = {written(template.render(caption, key=str(number))) for number in range(40)}
    assert found == {
        "[img]a<eos>red cat on a mat<eos>",
        "[img]a red<eos>cat on a mat<eos>",
        "[img]a red cat<eos>on a mat<eos>",
    }
    assert written(template.render(caption, key="7")) == written(template.render(caption, key="7"))
    assert written(template.render(caption[:1], generation_prompt=True)) == "[img]<eos>"
    assert written(template.render([caption[0], turn("assistant", "cat")])) == "[img]<eos>cat<eos>"


@pytest.mark.parametrize("name", SHIPPED)
def test_templates_that_write_prompt_and_answer_as_one_text_are_named(name):
    if name.startswith("blip2_t5") or name == "instructblip_t5":
        load_template(name).check_apart("t5")
    else:
        with pytest.raises(ConfigError, match=f"{name} writes prompt and answer as one text"):
            load_template(name).check_apart("t5")


def test_bos_stands_behind_the_pictures_only_where_it_is_said():
    turns = [turn("user", "q", PICTURE, OTHER), turn("assistant", "a")]
    assert written(load_template("blip2_vqa").render(turns)).startswith("[img][img]<bos>Question: q")
    assert written(load_template("vicuna_v1").render(turns)).startswith("<bos>")


@pytest.mark.parametrize("name", SHIPPED)
def test_an_answer_that_says_nothing_carries_no_loss_of_its_own(name):
    template = load_template(name)
    without = [segment for segment in template.render([turn("user", "q")], True) if segment.supervised]
    segments = [s for s in template.render([turn("user", "q"), turn("assistant", " ")]) if s.supervised]
    assert segments[: len(without)] == without
    assert written(segments[len(without) :]) == ("### " if name == "vicuna_v0" else "")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_generation_prompt_is_a_prefix(name):
    template = load_template(name)
    turns = [turn("system", "S"), *TWO_ROUNDS]
    prompt, whole = template.render(turns[:-1], True, key="k"), template.render(turns, key="k")
    if template.splits_answers:
        assert written(whole).startswith(written(prompt).removesuffix("<eos>"))
        return
    assert [replace(segment, supervised=False) for segment in whole[: len(prompt)]] == [
        replace(segment, supervised=False) for segment in prompt
    ]
