"""The processor: items, over-long samples, prompts and bad samples."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mmexp.contracts import IGNORE, Medium, Sample, Text, Turn
from mmexp.errors import DataError
from mmexp.llm import TinyLlmConfig
from mmexp.prompt import ChatTemplate, Processor, SegmentTokenizer, TooLongError
from tests.shared_data import load_template, segment_tokenizer


def transform(image):
    return torch.full((3, 2, 2), float(image.size[0]))


def processor(max_length_tokens: int = 400, **template) -> Processor:
    return Processor(
        template=ChatTemplate(name="t", default_system=None, **template),
        tokenizer=SegmentTokenizer(TinyLlmConfig().load_tokenizer()),
        slot_lengths={"image": 5},
        transforms={"image": transform},
        max_length_tokens=max_length_tokens,
    )


def sample(*turns, **fields) -> Sample:
    roles = ("user", "assistant")
    made = []
    for number, turn in enumerate(turns):
        parts = turn if isinstance(turn, tuple) else (turn,)
        parts = tuple(Text(text=part) if isinstance(part, str) else Medium(source=part) for part in parts)
        made.append(Turn(role=roles[number % 2], parts=parts))
    return Sample(**{"id": "s1", "dataset": "demo", "turns": tuple(made), **fields})


def picture(width: int) -> Image.Image:
    return Image.new("RGB", (width, 3))


def test_item_of_two_pictures():
    item = processor().encode(sample((picture(3), "q", picture(4)), "answer", meta={"type": "colour"}))
    assert [run.length for run in item.runs] == [5, 5]
    assert [float(value.mean()) for value in item.media["image"]] == [3.0, 4.0]
    for run in item.runs:
        assert (item.labels[run.start : run.start + run.length] == IGNORE).all()
    assert item.num_supervised == len(" answer") + 1
    assert item.meta == {"type": "colour"}
    supervised = item.labels != IGNORE
    assert torch.equal(item.labels[supervised], item.input_ids[supervised])


def test_transparent_pixels_lie_over_the_backdrop_in_training_and_in_prompts():
    clear = Image.new("RGBA", (4, 3), (7, 7, 7, 0))
    seen = replace(processor(), transforms={"image": lambda image: torch.tensor(image.getpixel((0, 0)))})
    for made, colour in ((seen, [7, 7, 7]), (replace(seen, backdrop=(255, 250, 0)), [255, 250, 0])):
        asked = sample((clear, "q"), "answer")
        assert made.encode(asked).media["image"][0].tolist() == colour
        assert made.encode_prompt(asked.turns[:1], id="p").media["image"][0].tolist() == colour


def test_prompt_is_a_prefix_of_training():
    full = sample((picture(3), "q"), "answer")
    item, prompt = processor().encode(full), processor().encode_prompt(full.turns[:1], id="p")
    assert torch.equal(item.input_ids[: len(prompt.input_ids)], prompt.input_ids)
    assert prompt.num_supervised == 0
    assert prompt.id == "p"


def test_text_only_has_no_media():
    item = processor().encode(sample("q", "a"))
    assert item.runs == ()
    assert item.media == {}


def test_over_long_loses_whole_exchanges_and_their_media():
    long = sample("q1", "a1", (picture(3), "q2"), "a2", "q3", "x" * 300)
    item = processor(100).encode(long)
    assert item.num_dropped_turns == 2
    assert torch.equal(item.input_ids, processor().encode(sample("q1", "a1", (picture(3), "q2"), "a2")).input_ids)
    shorter = processor(len(item.input_ids) - 1).encode(long)
    assert shorter.num_dropped_turns == 4
    assert shorter.media == {}
    assert len(processor(len(item.input_ids)).encode(long).input_ids) == len(item.input_ids)


def test_first_exchange_too_long_says_so():
    with pytest.raises(TooLongError, match="first exchange") as error:
        processor(30).encode(sample((picture(3), "q" * 50), "a"))
    assert "demo, sample 's1'" in error.value.where
    assert "max_length_tokens" in error.value.fix


USER, ANSWER = Turn(role="user", parts=()), Turn(role="assistant", parts=(Text(text="a"),))
MISSING = Turn(role="user", parts=(Medium(source="/no/such/file.png"),))
SOUND = Turn(role="user", parts=(Medium(source=b"", modality="audio"),))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((USER,), "without an answer"),
        ((USER, USER), "in the order user, user"),
        ((MISSING, ANSWER), "cannot be opened"),
        ((SOUND, ANSWER), "audio"),
    ],
)
def test_bad_sample_is_named(turns, message):
    with pytest.raises(DataError, match=message) as error:
        processor().encode(sample(turns=turns))
    assert "demo, sample 's1'" in error.value.where


def test_answer_without_text_is_detectable():
    assert processor().encode(sample("q", " ")).num_supervised == 0


def test_nothing_to_answer():
    with pytest.raises(DataError, match="nothing to answer"):
        processor().encode_prompt(sample("q", "a").turns)


def test_survives_pickling():
    made = sample("</s> <s>", "a</s>")
    copy = pickle.loads(pickle.dumps(processor()))
    assert torch.equal(copy.encode(made).input_ids, processor().encode(made).input_ids)


@pytest.mark.parametrize(
    "name", ["vicuna_v1", "llama2", "minigpt4", "plain", "blip2_align", "blip2_t5_vqa", "llava_v1"]
)
@pytest.mark.parametrize("answer", ["yes", "No, it is a ring."])
def test_an_answer_to_be_scored_is_the_one_of_training(name, answer):
    template = load_template(name, new_tokens=())
    made = replace(processor(), template=template, tokenizer=segment_tokenizer("llama2"))
    asked = sample((picture(3), "Is it red?"), answer)
    if name != "plain":  # which knows a single exchange
        asked = sample((picture(3), "What?"), "A star.", "Is it red?", answer)
    whole, open_, ended = made.layout(asked), made.answer_layout(asked), made.answer_layout(asked, with_end=True)
    prompt = made.prompt_layout(replace(asked, turns=asked.turns[:-1])).encoded
    start = len(prompt.ids)
    assert open_.encoded.ids[:start] == ended.encoded.ids[:start] == prompt.ids
    assert not any(open_.encoded.supervised[:start])
    assert ended.encoded.ids == whole.encoded.ids[: len(ended.encoded.ids)]
    assert ended.encoded.supervised[start:] == whole.encoded.supervised[start : len(ended.encoded.ids)]
    scored = [i for i, on in zip(open_.encoded.ids, open_.encoded.supervised, strict=True) if on]
    assert open_.encoded.ids == ended.encoded.ids[: len(open_.encoded.ids)]
    assert made.tokenizer.decode(scored).strip() == answer
    assert open_.media == whole.media


def test_an_answer_to_be_scored_is_never_cut():
    made = processor(max_answer_tokens=4)
    asked = sample("q", "a long answer")
    assert made.layout(asked).num_supervised == 4
    assert made.answer_layout(asked).num_supervised == len(" a long answer")
    with pytest.raises(TooLongError, match="at most 20 tokens"):
        replace(made, max_length_tokens=20).answer_layout(sample("q", "a", "another", "a long answer"))
