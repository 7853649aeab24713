"""A perfect answer is right in every notation, under every rule for pictures and in both frames."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmexp.contracts import Medium, Region, Sample, Text, Turn
from mmexp.encoder import ImageTransform
from mmexp.errors import ConfigError, DataError
from mmexp.evaluation import GroundingConfig, evaluate
from mmexp.evaluation.grounding import iou
from mmexp.llm import TinyLlmConfig
from mmexp.prompt import (
    AnyRes,
    ChatTemplate,
    DynamicTiles,
    OutsideViewError,
    Processor,
    SegmentTokenizer,
    TiledTransform,
    to_picture,
    to_view,
)
from mmexp.prompt.boxtext import WHOLE
from tests.shared_data import load_template

S = 96
TEMPLATES = ("internlm2", "minigptv2", "qwen_vl", "vicuna_v1")
SINGLE = {fit: ImageTransform(size_px=S, fit=fit) for fit in ("crop", "pad", "squash")}
TILED = {
    name: TiledTransform(tiling=rule, view=SINGLE["squash"], padded=SINGLE["pad"], num_soft_tokens=4, soft_grid=(2, 2))
    for name, rule in (("tiles", DynamicTiles(max_tiles=6)), ("anyres", AnyRes()))
}
FITS = {**SINGLE, **TILED}
TOKENIZER = SegmentTokenizer(TinyLlmConfig().load_tokenizer())


@functools.cache
def processor(template: str, fit: str, frame: str) -> Processor:
    """The template's notation in a tokenizer that has none of its control tokens."""
    return Processor(
        template=ChatTemplate(name=template, region=replace(load_template(template).region, **plain(template))),
        tokenizer=TOKENIZER,
        max_length_tokens=900,
        slot_lengths={"image": 4},
        transforms={"image": FITS[fit]},
        box_frame=frame,
    )


def plain(template: str) -> dict[str, str]:
    """The formats with their control tokens written as text."""
    region = load_template(template).region
    return {
        name: getattr(region, name).replace("{<", "<").replace(">}", ">") if "{<ref>}" in region.with_phrase else value
        for name, value in vars(region).items()
        if name in ("with_phrase", "alone", "box")
    }


def asked(size, box, num_pictures=1, text="", **meta) -> Sample:
    """A question for one box in the last of some pictures; the answer is a region, or a text."""
    media = [Medium(source=Image.new("RGB", (50, 20))) for _ in range(num_pictures - 1)]
    media.append(Medium(source=Image.new("RGB", size)))
    region = Region(boxes=(box,), phrase="that one", medium=num_pictures - 1)
    turns = (
        Turn(role="user", parts=(*media, Text(text="Where is that one?"))),
        Turn(role="assistant", parts=(Text(text=text),) if text else (region,)),
    )
    return Sample(id="s", dataset="d", turns=turns, meta=meta)


def taught(processor: Processor, sample: Sample) -> str:
    """The answer that training would supervise, as text."""
    encoded = processor.layout(sample).encoded
    return TOKENIZER.decode([i for i, flag in zip(encoded.ids, encoded.supervised, strict=True) if flag])


@st.composite
def scenes(draw):
    """A picture's size, and a box in hundredths of its frame, a quarter or more of it wide and high."""
    size = draw(st.integers(40, 900)), draw(st.integers(40, 900))
    low, high = draw(st.integers(0, 70)), draw(st.integers(0, 70))
    return size, (low, high, draw(st.integers(low + 25, 99)), draw(st.integers(high + 25, 99)))


@pytest.mark.parametrize("frame", ["view", "picture"])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=8, deadline=None)
@given(scene=scenes(), num_pictures=st.integers(1, 2))
def test_the_truth_as_written_is_found_again(template, fit, frame, scene, num_pictures):
    size, cells = scene
    made = processor(template, fit, frame)
    window = made.boxes.frame(asked(size, WHOLE, num_pictures), num_pictures - 1)
    # a hair inside of a cell: what rounding down to a hundredth costs is the notation's affair
    drawn = tuple((cell + 0.05) / 100 for cell in cells)
    box = to_picture(drawn, window)
    assume(box[2] - box[0] > 0.05 and box[3] - box[1] > 0.05)  # less than a step of the notation may be left of it
    sample = asked(size, box, num_pictures)
    answer = taught(made, sample)
    found = made.boxes.read(answer, sample, num_pictures - 1)
    assert found is not None, answer
    for side, (one, other) in enumerate(zip(found, box, strict=True)):
        assert abs(one - other) <= 0.011 * (window[2 + side % 2] - window[side % 2])
    if to_view(box, window) == pytest.approx(drawn, abs=1e-9):  # else an edge of the picture lies between two cells
        assert iou(found, box) >= 0.95
    graded = GroundingConfig(splits={}).grader(made.boxes).grade([sample], [answer])
    assert graded.metrics["mean_iou"] == pytest.approx(iou(found, box), abs=1e-9)
    assert graded.metrics.keys() == {"mean_iou", "unparsable"}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_box_that_the_crop_cuts_is_reported(template):
    made = processor(template, "crop", "view")
    size = (800, 400)  # the view shows the middle half
    wide, hidden, inside = (0.1, 0.2, 0.5, 0.8), (0.0, 0.2, 0.2, 0.8), (0.3, 0.2, 0.7, 0.8)
    samples = [asked(size, box) for box in (wide, hidden, inside)]
    answers = [taught(made, samples[0]), "nowhere", taught(made, samples[2])]
    graded = GroundingConfig(splits={}).grader(made.boxes).grade(samples, answers)
    assert graded.metrics["cut_off"] == pytest.approx(2 / 3)
    assert [line.get("cut_off", False) for line in graded.details] == [True, True, False]
    assert graded.details[0]["iou"] == pytest.approx(0.25 / 0.4, abs=0.03)
    assert graded.details[2]["iou"] > 0.95
    assert made.boxes.visible(hidden, samples[1]) is None
    with pytest.raises(OutsideViewError):
        taught(made, samples[1])


def test_a_box_in_the_padding_is_wrong_and_still_a_box():
    made = processor("vicuna_v1", "pad", "view")
    sample = asked((800, 400), (0.0, 0.0, 0.5, 1.0))
    graded = GroundingConfig(splits={}).grader(made.boxes).grade([sample], ["[0.00, 0.00, 0.50, 0.20]"])
    assert graded.metrics == {"mean_iou": 0.0, "unparsable": 0.0}


def test_only_the_first_box_of_an_answer_counts():
    made = processor("minigptv2", "squash", "view")
    sample = asked((80, 80), (0.1, 0.1, 0.5, 0.5))
    answers = [
        "{<10><10><50><50>} or {<60><60><90><90>}",
        "{<60><60><50><90>} or {<10><10><50><50>}",
        "[0.1,0.1,0.5,0.5]",
    ]
    graded = GroundingConfig(splits={}).grader(made.boxes).grade([sample] * 3, answers)
    assert graded.scores == (1.0, 0.0, 0.0)
    assert graded.metrics["unparsable"] == pytest.approx(2 / 3)


def test_majority_answers_the_median_box_in_the_notation_of_the_model(tmp_path: Path):
    made = processor("qwen_vl", "pad", "view")
    boxes = [(0.0, 0.0, 0.5, 0.5), (0.2, 0.2, 0.6, 0.6), (0.4, 0.4, 1.0, 1.0)]
    samples = [asked(size, box) for size, box in zip([(80, 40), (40, 80), (50, 50)], boxes, strict=True)]
    grader = GroundingConfig(splits={}).grader(made.boxes)
    answers = grader.majority(samples)
    assert answers == [made.boxes.write(boxes[1], sample) for sample in samples]
    assert answers[2] == "<box>(200,200),(600,600)</box>"
    assert grader.grade(samples, answers).details[1]["iou"] > 0.95


def test_rows_that_write_boxes_as_text(tmp_path: Path):
    """The shapes world: decimals of the picture, whatever the template and the frame."""
    made = processor("qwen_vl", "pad", "view")
    sample = asked((80, 40), WHOLE, text="[0.12, 0.34, 0.56, 0.78]")
    grader = GroundingConfig(splits={}, notation="data").grader(made.boxes)
    assert grader.grade([sample], ["[0.12, 0.34, 0.56, 0.78]"]).metrics["mean_iou"] == 1.0
    assert grader.majority([sample]) == ["[0.1200, 0.3400, 0.5600, 0.7800]"]
    assert GroundingConfig(splits={}).grade([sample], ["[0.12, 0.34, 0.56, 0.78]"]).scores == (1.0,)
    with pytest.raises(ConfigError, match="notation"):
        GroundingConfig(splits={}, notation="xml")


def test_the_runner_hands_on_how_the_model_writes(tmp_path: Path):
    made = processor("qwen_vl", "pad", "view")
    box = (0.25, 0.0, 0.75, 1.0)

    class Rows:
        def build(self):
            return [asked((80, 40), box)]

    config = GroundingConfig(splits={"test": Rows()})
    figures = evaluate(
        "refer", config, lambda s: ["<box>(250,250),(750,750)</box>"] * len(s), tmp_path, boxes=made.boxes
    )
    assert figures["test"]["refer"]["accuracy_iou50"] == 1.0
    assert figures["test"]["refer"]["majority"] == 1.0
    (line,) = map(json.loads, (tmp_path / "predictions" / "test_refer.jsonl").read_text().splitlines())
    assert line["target"] == "<box>(250,250),(750,750)</box>"
    assert line["boxes"]["predicted"] == pytest.approx(box, abs=2e-3)


def test_a_region_of_a_picture_that_is_not_there():
    boxes = processor("vicuna_v1", "pad", "view").boxes
    words = Sample(id="s", turns=asked((8, 8), WHOLE, text="x").turns[1:])
    with pytest.raises(DataError, match="medium 0"):
        boxes.read("[0.1, 0.1, 0.2, 0.2]", words)
