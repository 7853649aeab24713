"""Properties of tokenising by segment."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmexp.contracts import Medium, Segment, Text, Turn
from mmexp.errors import ConfigError, DataError
from tests.shared_data import load_template, load_tokenizer, segment_tokenizer

HARD = [
    "</s>",
    "<s>",
    "<image>",
    "USER:",
    "ASSISTANT: no",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<img>",
    "</box>",
    "###",
    "[/INST]",
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


def test_text_behind_a_control_token_gets_no_prefix_space(llama):
    encoded = segment_tokenizer("llama2").encode(
        [Segment(control="bos"), Segment(text="a"), Segment(control="eos"), Segment(text="USER")], {}
    )
    assert encoded.ids == [1, *llama("a</s>USER", add_special_tokens=False).input_ids]


def test_joined_text_merges_over_segment_borders(llama):
    encoded = segment_tokenizer("llama2").encode([Segment(text="hel"), Segment(text="lo", supervised=True)], {})
    assert encoded.ids == llama("hello", add_special_tokens=False).input_ids
    assert encoded.supervised == [True]


ALL = [
    *((name, "llama2") for name in ("vicuna_v0", "vicuna_v1", "llava_v1", "plain", "llama2", "mistral")),
    *((name, "llama2") for name in ("minigpt4", "minigpt4_llama2", "minigpt4_align", "minigptv2")),
    *((name, "opt") for name in ("blip2_align", "blip2_caption", "blip2_vqa", "vicuna_v1")),
    *((name, "qwen") for name in ("qwen_vl", "qwen25", "chatml", "internvl2_5")),
    *((name, "internlm2") for name in ("internlm2", "internvl2_5", "chatml", "vicuna_v1", "minigptv2")),
]


@pytest.mark.parametrize(("template_name", "tokenizer_name"), ALL)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversation=CONVERSATION)
def test_control_tokens_are_those_of_the_template_and_the_text_comes_back(template_name, tokenizer_name, conversation):
    template = load_template(template_name, max_answer_tokens=None)
    tokenizer = segment_tokenizer(tokenizer_name, *template.new_tokens)
    turns = [turn for pair in conversation for turn in pair]
    segments = template.render(turns, key="k")
    encoded = tokenizer.encode(segments, {"image": 1})
    slots = {run.start for run in encoded.runs}
    assert len(slots) == sum(len(turn.media) for turn in turns)
    ids = [index for place, index in enumerate(encoded.ids) if place not in slots]
    special = set(tokenizer.hf.all_special_ids) | {i for i, t in tokenizer.hf.added_tokens_decoder.items() if t.special}
    names = [s.control for s in segments if s.control and not (s.control == "bos?" and not tokenizer.hf.bos_token)]
    written = [tokenizer.control_id(name.rstrip("?")) for name in names]
    unknown = {tokenizer.hf.unk_token_id} - set(written)
    assert [index for index in ids if index in special - unknown] == written
    marks = {name: tokenizer.hf.convert_ids_to_tokens(index) for name, index in zip(names, written, strict=True)}
    text = "".join(marks.get(s.control, s.text) for s in segments)
    found = tokenizer.decode(ids, skip_special_tokens=False)
    normal = "NFC" if tokenizer_name == "qwen" else None
    assert "".join(found.split()) == "".join(as_tokenizer_sees(text, normal).split())


@pytest.mark.parametrize("side", ["right", "left"])
def test_answers_are_cut_on_one_side_and_counted(llama, side):
    template = load_template("vicuna_v1", max_answer_tokens=3, answer_cut=side)
    turns = [*exchange("q", "one two three four five", 1), *exchange("r", "six", 1)]
    whole = segment_tokenizer("llama2").encode(template.render(turns), {"image": 2})
    encoded = segment_tokenizer("llama2").encode(template.render(turns), {"image": 2})
    encoded.limit_answers(template.max_answer_tokens, template.answer_cut)
    assert encoded.num_cut_tokens == len(whole.ids) - len(encoded.ids) == 3
    shown = [llama.decode(group) for group in runs_of(encoded)]
    assert shown == (["one two three", "six</s>"] if side == "right" else ["four five</s>", "six</s>"])
    for run, before in zip(encoded.runs, whole.runs, strict=True):
        assert encoded.ids[run.start - 1] == whole.ids[before.start - 1]
        assert encoded.ids[run.start : run.start + 2] == [llama.pad_token_id] * 2


def runs_of(encoded) -> list[list[int]]:
    groups, before = [], False
    for index, supervised in zip(encoded.ids, encoded.supervised, strict=True):
        if supervised:
            groups[-1:] = [[*groups[-1], index]] if before else [*groups[-1:], [index]]
        before = supervised
    return groups


def test_new_tokens_are_added_to_a_copy_only():
    before = len(load_tokenizer("internlm2"))
    tokenizer = segment_tokenizer("internlm2", "<img>", "<s>")
    assert tokenizer.new_tokens == ("<img>",)
    assert tokenizer.vocab_size == before + 1
    assert tokenizer.control_id("<img>") == before
    assert len(load_tokenizer("internlm2")) == before


def test_an_optional_control_token_is_left_out():
    segments = [Segment(control="bos?"), Segment(text="a")]
    assert segment_tokenizer("qwen").encode(segments, {}).ids == segment_tokenizer("qwen").hf("a").input_ids
    assert segment_tokenizer("internlm2").encode(segments, {}).ids[0] == 1
    with pytest.raises(ConfigError, match="bos"):
        segment_tokenizer("qwen").control_id("bos")


def test_text_behind_a_medium_can_continue(llama):
    turns = exchange("a b", "c", 1)
    for after, expected in (("fresh", "\u2581a"), ("continued", "a")):
        template = load_template("mistral", media="inline", after_medium=after)
        encoded = segment_tokenizer("llama2").encode(template.render(turns), {"image": 1})
        assert llama.convert_ids_to_tokens(encoded.ids[encoded.runs[0].start + 1]) == expected


def test_missing_control_token_says_what_there_is(qwen, vicuna):
    with pytest.raises(ConfigError, match="bos") as error:
        segment_tokenizer("qwen").check(vicuna)
    assert "<|im_start|>" in error.value.expected


def test_misspelled_control_token_is_answered_with_the_nearest(qwen):
    with pytest.raises(ConfigError) as error:
        segment_tokenizer("qwen").control_id("<|im_strat|>")
    assert "<|im_start|>" in error.value.fix


def test_medium_without_a_branch_is_named(llama):
    with pytest.raises(DataError, match="audio"):
        segment_tokenizer("llama2").encode([Segment(medium=Medium(source="x", modality="audio"))], {"image": 4})


def test_stop_ids(llama, qwen, vicuna, chatml, plain):
    assert segment_tokenizer("llama2").stop_ids(vicuna) == (2,)
    assert segment_tokenizer("llama2").stop_ids(plain) == (13, 2), "its stop text is one token"
    assert segment_tokenizer("opt").stop_ids(load_template("blip2_vqa")) == (50118, 2)
    assert segment_tokenizer("llama2").stop_ids(load_template("minigpt4")) == (2,), "and here two"
    assert qwen.convert_tokens_to_ids("<|im_end|>") in segment_tokenizer("qwen").stop_ids(chatml)


def test_pad_id_falls_back(llama):
    assert segment_tokenizer("llama2").pad_id == llama.pad_token_id


def test_survives_pickling(llama, vicuna):
    tokenizer = segment_tokenizer("llama2")
    segments = vicuna.render(exchange("a </s> b", "c", 1))
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(segments, {"image": 3}) == tokenizer.encode(segments, {"image": 3})
