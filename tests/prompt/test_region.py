"""Boxes written as each recipe writes them, and read back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmexp.contracts import Medium, Region, Text, Turn
from mmexp.errors import ConfigError, DataError
from mmexp.prompt import RegionFormat
from tests.shared_data import load_template, load_tokenizer, segment_tokenizer

BOX, OTHER = (0.12, 0.34, 0.56, 0.785), (0.0, 0.5, 1.0, 1.0)
COGVLM = RegionFormat(
    with_phrase="{phrase} [[{boxes}]]",
    alone="[[{boxes}]]",
    box="{x1},{y1},{x2},{y2}",
    between=";",
    grid=1000,
    largest=999,
    rounding="down",
    digits=3,
)
WRITTEN = {
    "qwen_vl": "<ref>a dog</ref><box>(120,340),(560,785)</box><box>(0,500),(999,999)</box>",
    "minigptv2": "<p>a dog</p> {<12><34><56><78>}<delim>{<0><50><100><100>}",
    "vicuna_v1": "a dog [0.12, 0.34, 0.56, 0.79], [0.00, 0.50, 1.00, 1.00]",
    "internlm2": "<ref>a dog</ref><box>[[120, 340, 560, 785], [0, 500, 1000, 1000]]</box>",
}


def text_of(form: RegionFormat, region: Region) -> str:
    return "".join(piece.value for piece in form.write(region))


@pytest.mark.parametrize("name", WRITTEN)
def test_written_as_published(name):
    form = load_template(name).region
    assert text_of(form, Region(boxes=(BOX, OTHER), phrase="a dog")) == WRITTEN[name]


def test_cogvlm_fills_up_with_zeros():
    assert text_of(COGVLM, Region(boxes=((0.001, 0.02, 0.3, 1.0), BOX))) == "[[001,020,300,999;120,340,560,785]]"


def test_minigptv2_truncates_as_int_does():
    """29 of 100 pixels: int(29 / 100 * 100) is 28."""
    form = load_template("minigptv2").region
    assert text_of(form, Region(boxes=((29 / 100, 0.5, 0.57, 0.99),))) == "{<28><50><56><99>}"


FORMS = {name: lambda name=name: load_template(name).region for name in WRITTEN} | {"cogvlm": lambda: COGVLM}
SHARE = st.floats(0, 1, allow_nan=False)


def box_of(one: float, two: float, three: float, four: float) -> tuple[float, float, float, float]:
    return min(one, two), min(three, four), max(one, two), max(three, four)


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(box_of, SHARE, SHARE, SHARE, SHARE), min_size=1, max_size=3), st.booleans())
def test_what_is_written_is_read_back(name, boxes, bare):
    form = FORMS[name]()
    boxes = [(left, top, right, bottom) for left, _, right, _ in boxes for _, top, _, bottom in boxes]
    cell = 1 / (form.grid or 100) + 2e-3
    boxes = [box for box in boxes if box[2] - box[0] > 2 * cell and box[3] - box[1] > 2 * cell]
    if not boxes:
        return
    pieces = form.write(Region(boxes=tuple(boxes), phrase="that one"))
    text = "".join(piece.value for piece in pieces if not (bare and piece.kind == "control"))
    found = form.parse(f"It is {text}.")
    assert len(found) == len(boxes)
    for one, other in zip(found, boxes, strict=True):
        assert all(abs(a - b) <= cell for a, b in zip(one, other, strict=True))


def test_qwen_reads_back_as_its_evaluation_does():
    assert load_template("qwen_vl").region.parse("<box>(0,0),(999,333)</box>") == ((0.0, 0.0, 1.0, 333 / 999),)


@pytest.mark.parametrize("text", ["", "no box", "[0.5, 0.5, 0.4, 0.9]", "[0.1, 0.2, 1.4, 0.9]", "[0.1, 0.2, 0.3]"])
def test_what_is_no_box_is_left_out(text):
    assert RegionFormat().parse(text) == ()


@pytest.mark.parametrize("box", [(0, 0, 1.2, 1), (float("nan"), 0, 1, 1), (0.5, 0, 0.4, 1)])
def test_a_box_that_cannot_be_says_what_is_expected(box):
    with pytest.raises(DataError) as error:
        RegionFormat().write(Region(boxes=(box,)))
    assert error.value.expected
    assert error.value.fix


def test_a_region_needs_a_box():
    with pytest.raises(DataError, match="without a box"):
        RegionFormat().write(Region(boxes=(), phrase="x"))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"box": "({x1},{y1})"}, "template.region.box"),
        ({"box": "{y1}{x1}{x2}{y2}"}, "template.region.box"),
        ({"with_phrase": "{boxes}"}, "template.region.with_phrase"),
        ({"alone": "{loss}{boxes}"}, "template.region.alone"),
        ({"grid": 0}, "template.region.grid"),
        ({"rounding": "up"}, "template.region.rounding"),
    ],
)
def test_bad_settings_name_their_field(changes, where):
    with pytest.raises(ConfigError) as error:
        RegionFormat(**changes)
    assert error.value.where == where


def test_tags_of_qwen_are_control_tokens_and_a_phrase_cannot_be_one():
    qwen, template = load_tokenizer("qwen"), load_template("qwen_vl")
    turns = [
        Turn(role="user", parts=(Medium(source="x.jpg"), Text(text="Where is "), Region(boxes=(BOX,), phrase="<box>"))),
        Turn(role="assistant", parts=(Region(boxes=(OTHER,), phrase="here"),)),
    ]
    encoded = segment_tokenizer("qwen").encode(template.render(turns), {"image": 2})
    ids = {name: qwen.convert_tokens_to_ids(name) for name in ("<ref>", "</ref>", "<box>", "</box>")}
    assert [encoded.ids.count(index) for index in ids.values()] == [2, 2, 2, 2]
    shown = [index for index, flag in zip(encoded.ids, encoded.supervised, strict=True) if flag]
    assert "<ref>here</ref><box>(0,500),(999,999)</box><|im_end|>\n" in qwen.decode(shown)
    assert "<ref><box></ref>" in qwen.decode(encoded.ids)


def test_an_answer_of_boxes_alone_carries_loss():
    segments = load_template("vicuna_v1").render(
        [
            Turn(role="user", parts=(Text(text="Where?"),)),
            Turn(role="assistant", parts=(Region(boxes=(BOX,)),)),
        ]
    )
    assert "".join(s.text for s in segments if s.supervised) == " [0.12, 0.34, 0.56, 0.79]"
