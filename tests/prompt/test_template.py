"""Templates as data: parsing, arrangement of media, and what is supervised."""

from __future__ import annotations

import pytest

from mmexp.contracts import Medium, Text, Turn
from mmexp.errors import ConfigError
from mmexp.prompt import ChatTemplate
from tests.shared_data import load_template

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


@pytest.mark.parametrize("name", ["plain", "vicuna_v1", "llava_v1", "chatml"])
def test_shipped_templates_build(name):
    assert load_template(name).name == name
