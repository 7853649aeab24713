"""Every value of every format replaced by an odd one: a sample comes out or a DataError, never anything else."""

from __future__ import annotations

import copy
import pickle

import pytest

from mmexp.data import (
    AutoConfig,
    CocoCaptionsConfig,
    GqaConfig,
    ImageFolderConfig,
    InstructionsConfig,
    LavisCaptionsConfig,
    LavisVqaConfig,
    LlavaJsonConfig,
    MessagesConfig,
    MiniGpt4CaptionsConfig,
    PopeConfig,
    QwenVlJsonConfig,
    RefCocoConfig,
    ScienceQaConfig,
    ShareGptConfig,
    TextVqaConfig,
    VqaV2Config,
)  # fmt: skip
from mmexp.errors import DataError
from tests.data.readers.make import everything, write

ODD = (None, True, -1, 1e300, "", "\0", "../x", [], [[]], {}, {"a": 1}, [None, "x"])
TALK = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]
FORMATS = [
    (CocoCaptionsConfig, {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": "c"}]}),
    (LavisCaptionsConfig, [{"image": "a", "caption": ["c", "d"], "image_id": "x"}]),
    (LavisVqaConfig, [{"image": "a", "question": "q", "question_id": 3, "answer": ["a", "b"]}]),
    (GqaConfig, {"1": {"question": "q", "imageId": "x", "answer": "a", "types": {"structural": "query"}}}),
    (TextVqaConfig, {"data": [{"question_id": 1, "image_id": "ab", "question": "q", "answers": ["x"]}]}),
    (
        ScienceQaConfig,
        {"1": {"question": "q", "choices": ["a", "b"], "answer": 1, "hint": "h", "image": "i", "split": "train"}},
    ),
    (PopeConfig, [{"question_id": 1, "image": "a", "text": "q", "label": "yes"}]),
    (RefCocoConfig, [{"img_id": 5, "sents": ["a"], "bbox": [1, 2, 3, 4], "height": 20, "width": 40, "ref_id": 7}]),
    (ImageFolderConfig, [{"file_name": "a", "text": "t"}]),
    (MiniGpt4CaptionsConfig, {"annotations": [{"image_id": "2", "caption": "x"}]}),
    (LlavaJsonConfig, [{"id": 1, "image": ["a"], "conversations": TALK}]),
    (ShareGptConfig, [{"images": ["a"], "conversations": TALK, "system": "s"}]),
    (
        MessagesConfig,
        [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]},
                    {"role": "assistant", "content": "a"},
                ],
                "images": ["a"],
            }
        ],
    ),
    (
        MessagesConfig,
        [
            {
                "messages": [
                    {"role": "user", "content": "<image><ref-object><bbox>"},
                    {"role": "assistant", "content": "a", "loss": True, "weight": 1},
                ],
                "images": ["a"],
                "system": "s",
                "objects": {"ref": ["x"], "bbox": [[0, 0, 1, 1]], "bbox_type": "norm1", "image_id": [0]},
            }
        ],
    ),
    (InstructionsConfig, [{"instruction": "q", "input": "i", "output": "a", "history": [["q", "a"]]}]),
    (
        QwenVlJsonConfig,
        [{"id": 1, "conversations": [{"from": "user", "value": "<img>a</img>q"}, {"from": "assistant", "value": "a"}]}],
    ),
]
QUESTIONS = {"questions": [{"question_id": 1, "image_id": 5, "question": "q"}]}
ANSWERS = {
    "annotations": [{"question_id": 1, "image_id": 5, "multiple_choice_answer": "a", "answers": [{"answer": "a"}]}]
}
REFS = [{"ref_id": 1, "ann_id": 11, "image_id": 5, "split": "val", "sentences": [{"sent": "left"}]}]
INSTANCES = {
    "images": [{"id": 5, "height": 200, "width": 400}],
    "annotations": [{"id": 11, "image_id": 5, "bbox": [100, 50, 200, 100]}],
}


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(content):
    """The content with one value replaced or left out, in every way."""
    for path in places(content):
        for odd in ODD:
            made = copy.deepcopy({"": content})
            target = made
            for key in ("", *path)[:-1]:
                target = target[key]
            target[("", *path)[-1]] = odd
            yield path, odd, made[""]
        if path:
            made = copy.deepcopy(content)
            target = made
            for key in path[:-1]:
                target = target[key]
            del target[path[-1]]
            yield path, "left out", made


def is_no_row(path, odd):
    """Whether the change left no row, or one of another split."""
    depth = 2 if path and path[0] in ("annotations", "questions", "data") else 1
    is_gone = len(path) <= depth and odd in ("left out", [], {})
    return is_gone or (path[-1:] == ("split",) and isinstance(odd, str))


def check(config, path, odd):
    """One row went in: a sample or a named mistake comes out, and samples can be read."""
    try:
        data, errors = config.build_tolerant()
        samples = everything(data)
        if not errors and not isinstance(config, VqaV2Config):
            everything(AutoConfig(path=config.path).build())
    except DataError as error:
        assert str(error)  # noqa: PT017  (both ways out are right)
        return 1
    except Exception as error:
        error.add_note(f"{type(config).__name__}: {path} = {odd!r}")
        raise
    for sample in samples:
        assert sample.turns
        assert sample.id
    found = f"{path} = {odd!r} gives {len(samples)} samples and {len(errors)} mistakes"
    assert samples or errors or is_no_row(path, odd), found
    return len(errors)


@pytest.mark.parametrize(("config", "content"), FORMATS, ids=lambda value: getattr(value, "__name__", ""))
def test_rows(tmp_path, config, content):
    assert check(config(path=str(write(tmp_path, content))), "nothing", "changed") == 0
    complaints = [check(config(path=str(write(tmp_path, made))), path, odd) for path, odd, made in changed(content)]
    assert sum(complaints) > len(ODD)


@pytest.mark.parametrize("file", ["questions", "answers"])
def test_vqa_v2(tmp_path, file):
    for path, odd, made in changed(QUESTIONS if file == "questions" else ANSWERS):
        questions, answers = (made, ANSWERS) if file == "questions" else (QUESTIONS, made)
        config = VqaV2Config(
            path=str(write(tmp_path, questions, "q.json")), annotations=str(write(tmp_path, answers, "a.json"))
        )
        check(config, path, odd)


@pytest.mark.parametrize("file", ["refs", "instances"])
def test_refs(tmp_path, file):
    for path, odd, made in changed(REFS if file == "refs" else INSTANCES):
        refs, instances = (made, INSTANCES) if file == "refs" else (REFS, made)
        config = RefCocoConfig(
            path=str(write(tmp_path, pickle.dumps(refs, protocol=2), "refs.p")),
            instances=str(write(tmp_path, instances, "instances.json")),
        )
        check(config, path, odd)


def test_captions_of_pictures(tmp_path):
    for path, odd, made in changed(FORMATS[0][1]):
        check(CocoCaptionsConfig(path=str(write(tmp_path, made)), per="picture"), path, odd)
