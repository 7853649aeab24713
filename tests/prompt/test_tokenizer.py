"""Properties of tokenising by segment."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmexp.contracts import Medium, Segment, Text, Turn
from mmexp.errors import ConfigError, DataError
from mmexp.prompt import SegmentTokenizer
from tests.shared_data import load_template, load_tokenizer

HARD = [
    "</s>",
    "<s>",
    "<image>",
    "USER:",
    "ASSISTANT: no",
    "<|im_end|>",
    "\u732b\u306f\u3053",
    "\U0001f984\U0001f9d1\u200d\U0001f4bb",
    " ",
    "\n",
    "{turn}",
]
TEXT = st.lists(
    st.sampled_from(HARD) | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=8), max_size=5
).map("".join)
ANSWER = TEXT.map(str.strip).filter(bool)
PAIRS = [
    ("llama2", "vicuna_v1"),
    ("llama2", "plain"),
    ("qwen", "chatml"),
    ("internlm2", "chatml"),
]


def exchange(question: str, answer: str, num_images: int) -> list[Turn]:
    media = [Medium(source="x.png")] * num_images
    return [
        Turn(role="user", parts=(*media, Text(text=question))),
        Turn(role="assistant", parts=(Text(text=answer),)),
    ]


CONVERSATION = st.lists(st.builds(exchange, TEXT, ANSWER, st.integers(0, 2)), min_size=1, max_size=3)


def supervised_texts(tokenizer, encoded) -> list[str]:
    groups, before = [], False
    for index, supervised in zip(encoded.ids, encoded.supervised, strict=True):
        if supervised and not before:
            groups.append([])
        if supervised:
            groups[-1].append(index)
        before = supervised
    return [tokenizer.decode(group).strip() for group in groups]


@pytest.mark.parametrize(("tokenizer_name", "template_name"), PAIRS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversation=CONVERSATION)
def test_supervised_text_decodes_to_exactly_the_answers(tokenizer_name, template_name, conversation):
    tokenizer, template = segment_tokenizer(tokenizer_name), load_template(template_name)
    turns = [turn for pair in conversation for turn in pair]
    encoded = tokenizer.encode(template.render(turns), {"image": 2})
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    found = supervised_texts(tokenizer, encoded)
    normal = "NFC" if tokenizer_name == "qwen" else None
    if template_name == "plain":  # answers of text-only exchanges stand side by side there
        assert "".join("".join(found).split()) == "".join("".join(answers).split())
    else:
        assert found == [as_tokenizer_sees(answer, normal) for answer in answers]


def as_tokenizer_sees(text: str, normal: str | None) -> str:
    import unicodedata

    return (unicodedata.normalize(normal, text) if normal else text).strip()


@pytest.mark.parametrize(("tokenizer_name", "template_name"), PAIRS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversation=CONVERSATION)
def test_generation_prompt_is_a_prefix_of_the_training_ids(tokenizer_name, template_name, conversation):
    tokenizer, template = segment_tokenizer(tokenizer_name), load_template(template_name)
    turns = [turn for pair in conversation for turn in pair]
    training = tokenizer.encode(template.render(turns), {"image": 2})
    prompt = tokenizer.encode(template.render(turns[:-1], generation_prompt=True), {"image": 2})
    assert training.ids[: len(prompt.ids)] == prompt.ids
    assert template_name == "plain" or not prompt.supervised[-1]
    assert all(training.supervised[len(prompt.ids) : len(prompt.ids) + 1])


def test_merges_cannot_spell_a_control_token():
    """InternLM2's merges make id 1 out of the three characters of `<s>`."""
    tokenizer = segment_tokenizer("internlm2")
    encoded = tokenizer.encode([Segment(text="a <s>"), Segment(text=" b</s>", supervised=True)], {})
    assert not {1, 2} & set(encoded.ids)
    assert tokenizer.decode(encoded.ids) == "a <s> b</s>"
    supervised = [index for index, flag in zip(encoded.ids, encoded.supervised, strict=True) if flag]
    assert tokenizer.decode(supervised) == " b</s>"


@pytest.mark.parametrize("tokenizer_name", ["llama2", "internlm2"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversation=CONVERSATION)
def test_user_text_never_becomes_a_control_token(tokenizer_name, conversation):
    tokenizer, template = segment_tokenizer(tokenizer_name), load_template("vicuna_v1")
    turns = [turn for pair in conversation for turn in pair]
    encoded = tokenizer.encode(template.render(turns), {"image": 1})
    slots = {run.start for run in encoded.runs}
    ids = [index for place, index in enumerate(encoded.ids) if place not in slots]
    assert ids.count(1) == 1
    assert ids.count(2) == len(conversation)
    assert len(slots) == sum(len(turn.media) for turn in turns)


_built: dict[str, SegmentTokenizer] = {}


def segment_tokenizer(name: str) -> SegmentTokenizer:
    if name not in _built:
        _built[name] = SegmentTokenizer(load_tokenizer(name))
    return _built[name]


def test_text_behind_a_control_token_gets_no_prefix_space(llama):
    encoded = SegmentTokenizer(llama).encode(
        [Segment(control="bos"), Segment(text="a"), Segment(control="eos"), Segment(text="USER")], {}
    )
    assert encoded.ids == [1, *llama("a</s>USER", add_special_tokens=False).input_ids]


def test_joined_text_merges_over_segment_borders(llama):
    encoded = SegmentTokenizer(llama).encode([Segment(text="hel"), Segment(text="lo", supervised=True)], {})
    assert encoded.ids == llama("hello", add_special_tokens=False).input_ids
    assert encoded.supervised == [True]


def test_missing_control_token_says_what_there_is(qwen, vicuna):
    with pytest.raises(ConfigError, match="bos") as error:
        SegmentTokenizer(qwen).check(vicuna)
    assert "<|im_start|>" in error.value.expected


def test_misspelled_control_token_is_answered_with_the_nearest(qwen):
    with pytest.raises(ConfigError) as error:
        SegmentTokenizer(qwen).control_id("<|im_strat|>")
    assert "<|im_start|>" in error.value.fix


def test_medium_without_a_branch_is_named(llama):
    with pytest.raises(DataError, match="audio"):
        SegmentTokenizer(llama).encode([Segment(medium=Medium(source="x", modality="audio"))], {"image": 4})


def test_stop_ids(llama, qwen, vicuna, chatml, plain):
    assert SegmentTokenizer(llama).stop_ids(vicuna) == (2,)
    assert SegmentTokenizer(llama).stop_ids(plain) == (2,)
    assert qwen.convert_tokens_to_ids("<|im_end|>") in SegmentTokenizer(qwen).stop_ids(chatml)


def test_pad_id_falls_back(llama):
    assert SegmentTokenizer(llama).pad_id == llama.pad_token_id


def test_survives_pickling(llama, vicuna):
    tokenizer = SegmentTokenizer(llama)
    segments = vicuna.render(exchange("a </s> b", "c", 1))
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(segments, {"image": 3}) == tokenizer.encode(segments, {"image": 3})
