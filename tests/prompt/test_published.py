"""Token ids and supervision against the published preprocessing, on real conversations with the real tokenizers."""

from __future__ import annotations

import functools

import pytest

from mmexp.data.readers.llava import _check_row, _images, _turns
from mmexp.prompt import SegmentTokenizer
from tests.prompt import reference
from tests.shared_data import load_rows, load_template

FILES = [
    ("annotations", "llava_instruct.json"),
    ("text", "llava_qa90_conversations.json"),
    ("text", "vicuna_dummy_conversations.json"),
    ("text", "xcomposer_single_turn.json"),
]


@functools.cache
def segment_tokenizer(tokenizer) -> SegmentTokenizer:
    return SegmentTokenizer(tokenizer)


def turns_of(row):
    _check_row(row, 0)
    return _turns(row, _images(row))


def ids_of(tokenizer, template, row):
    encoded = segment_tokenizer(tokenizer).encode(template.render(turns_of(row)), {"image": 1})
    for run in encoded.runs:
        encoded.ids[run.start] = reference.IMAGE
    return encoded


def single_image(row) -> bool:
    return all(turn["value"].count("<image>") <= 1 for turn in row["conversations"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file[1])
def test_vicuna_ids_are_the_published_ones(file, llama, vicuna):
    compared = 0
    for row in filter(single_image, load_rows(*file)):
        text, _ = reference.vicuna_text(row["conversations"], vicuna.default_system)
        assert ids_of(llama, vicuna, row).ids == reference.tokenize(text, llama), row["id"]
        compared += 1
    assert compared


def test_plain_ids_are_the_published_ones(llama, plain):
    for row in load_rows("annotations", "llava_pretrain.json"):
        encoded = ids_of(llama, plain, row)
        assert encoded.ids == reference.tokenize(reference.plain_text(row["conversations"]), llama)
        assert encoded.supervised == [False, False] + [True] * (len(encoded.ids) - 2)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file[1])
def test_vicuna_supervises_exactly_the_answers(file, llama, vicuna):
    """Each run of supervised tokens is `{answer}</s>` with the space before it."""
    for row in load_rows(*file):
        encoded = ids_of(llama, vicuna, row)
        answers = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        runs = runs_of(encoded)
        assert [llama.decode(run) for run in runs] == [f"{answer}</s>" for answer in answers]


def runs_of(encoded) -> list[list[int]]:
    runs, before = [], False
    for index, supervised in zip(encoded.ids, encoded.supervised, strict=True):
        if supervised and not before:
            runs.append([])
        if supervised:
            runs[-1].append(index)
        before = supervised
    return runs


def test_counted_masks_of_llava_agree(llama, vicuna):
    """preprocess_v1's own arithmetic for a non-legacy tokenizer: lengths of rounds and instructions."""
    for row in load_rows("annotations", "llava_instruct.json"):
        text, _ = reference.vicuna_text(row["conversations"], vicuna.default_system)
        ids = reference.tokenize(text, llama)
        supervised, cursor = [False] * len(ids), 1
        for number, chunk in enumerate(part for part in text.split("</s>") if part):
            instruction = chunk.split(" ASSISTANT: ")[0] + " ASSISTANT: "
            round_length = len(reference.tokenize(chunk, llama)) - (number > 0)
            instruction_length = len(reference.tokenize(instruction, llama)) - 2 - (number > 0)
            for place in range(cursor + instruction_length, cursor + round_length):
                supervised[place] = True
            cursor += round_length
        assert cursor == len(ids)
        assert ids_of(llama, vicuna, row).supervised == supervised


def test_chatml_ids_are_those_of_the_whole_string(qwen, chatml):
    """Byte-level BPE: the same ids as the whole rendered string with special tokens parsed, as Qwen tokenises it."""
    for row in load_rows("text", "vicuna_dummy_conversations.json"):
        text = f"<|im_start|>system\n{chatml.default_system}<|im_end|>\n"
        for turn in row["conversations"]:
            role = "user" if turn["from"] == "human" else "assistant"
            text += f"<|im_start|>{role}\n{turn['value'].strip()}<|im_end|>\n"
        encoded = ids_of(qwen, chatml, row)
        assert encoded.ids == qwen(text).input_ids
        answers = [turn["value"].strip() for turn in row["conversations"] if turn["from"] == "gpt"]
        assert [qwen.decode(run) for run in runs_of(encoded)] == [f"{answer}<|im_end|>" for answer in answers]


def test_llava_v1_differs_only_in_its_system_text(llama, vicuna):
    other = load_template("llava_v1")
    assert "curious human" in other.default_system
    assert other.default_system.replace("human", "user") == vicuna.default_system
