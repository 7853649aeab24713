"""Captions, questions and referring expressions: rows of the published layouts, the real files, and broken ones."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import pytest

from mmexp.data import (
    CocoCaptionsConfig,
    GqaConfig,
    LavisCaptionsConfig,
    LavisVqaConfig,
    MiniGpt4CaptionsConfig,
    PopeConfig,
    RefCocoConfig,
    ScienceQaConfig,
    TextVqaConfig,
    VqaV2Config,
)  # fmt: skip
from mmexp.data.readers.prompts import BRIEF_PROMPTS, DETAILED_PROMPTS, SHORT_ANSWER
from mmexp.data.readers.refcoco import convert_refs
from mmexp.errors import DataError
from tests.data.readers.make import complaint, everything, flat, write
from tests.shared_data import shared


def test_real_captions():
    path = shared("annotations", "captions.json")
    source = json.loads(path.read_text())
    samples = everything(CocoCaptionsConfig(path=str(path), image_root=str(path.parents[1])).build())
    assert [sample.turns[1].text for sample in samples] == [row["caption"] for row in source["annotations"]]
    names = {row["id"]: row["file_name"] for row in source["images"]}
    for sample, row in zip(samples, source["annotations"], strict=True):
        (image,) = sample.turns[0].media
        assert image.source == str(path.parents[1].resolve() / names[row["image_id"]])
        assert sample.turns[0].text.strip() in BRIEF_PROMPTS
    used = Counter(sample.turns[0].text for sample in samples)
    assert len(used) == len(BRIEF_PROMPTS)
    assert max(used.values()) < 2 * min(used.values())


def test_real_minigpt4():
    path = shared("annotations", "minigpt4_align.json")
    samples = everything(MiniGpt4CaptionsConfig(path=str(path), image_root=str(path.parents[1])).build())
    assert len(samples) == 121
    assert samples[0].turns[1].text.startswith("A big burly grizzly")
    assert {sample.turns[0].text.strip() for sample in samples} == set(DETAILED_PROMPTS)
    official = [
        line.split("<ImageHere></Img> ")[-1]
        for line in shared("text", "minigpt4_alignment_prompts.txt").read_text().splitlines()
    ]
    assert {prompt.strip() for prompt in official if prompt.strip()} == set(DETAILED_PROMPTS)


def test_real_vqa():
    path = shared("annotations", "vqa_questions.json")
    answers = str(path.with_name("vqa_annotations.json"))
    config = VqaV2Config(path=str(path), annotations=answers, image_name="images/coco_{image_id:012d}.jpg")
    samples = everything(config.build())
    truth = {
        row["question_id"]: row for row in json.loads(path.with_name("vqa_annotations.json").read_text())["annotations"]
    }
    assert len(samples) == 52
    for sample in samples:
        row = truth[int(sample.id)]
        assert sample.turns[1].text == row["multiple_choice_answer"]
        assert sample.turns[0].text.endswith(SHORT_ANSWER)
        assert sample.meta["answers"] == [answer["answer"] for answer in row["answers"]]
        assert sample.meta["type"] == row["answer_type"]


@pytest.mark.parametrize("kind", ["random", "popular", "adversarial"])
def test_real_pope(kind):
    path = shared("annotations", f"pope_{kind}.jsonl")
    samples = everything(PopeConfig(path=str(path), image_root=str(path.parents[1])).build())
    assert {sample.turns[1].text for sample in samples} == {"yes", "no"}
    assert all(len(sample.turns[0].media) == 1 for sample in samples)
    assert (
        len(everything(PopeConfig(path=str(shared("metrics", "pope", f"coco_pope_{kind}_first600.jsonl"))).build()))
        == 600
    )


def test_lavis(tmp_path):
    captions = [{"image": "a.jpg", "caption": "one", "image_id": 3}, {"image": "a.jpg", "caption": ["two", "three"]}]
    first, second = everything(LavisCaptionsConfig(path=str(write(tmp_path, captions)), prompts=("Say.",)).build())
    assert flat(first) == [("user", tmp_path / "a.jpg", "\nSay."), ("assistant", "one")]
    assert second.meta == {"captions": ["two", "three"]}
    rows = [{"image": "a.jpg", "question": "q?", "question_id": 9, "answer": ["b", "a", "a"]}]
    (sample,) = everything(LavisVqaConfig(path=str(write(tmp_path, rows, "v.json"))).build())
    assert (sample.id, sample.turns[1].text, sample.meta["answers"]) == ("9", "a", ["b", "a", "a"])


def test_gqa_stays_in_its_file(tmp_path):
    rows = {
        "07333408": {
            "question": "What is on the wall?",
            "imageId": "2375429",
            "answer": "pipe",
            "fullAnswer": "The pipe.",
            "isBalanced": True,
        },
        "2": {"question": "q", "imageId": "x", "answer": "no", "fullAnswer": "No."},
    }
    path = str(write(tmp_path, rows))
    first, second = everything(GqaConfig(path=path).build())
    assert (first.id, second.id) == ("07333408", "2")
    assert flat(first) == [
        ("user", tmp_path / "2375429.jpg", "\nWhat is on the wall?" + SHORT_ANSWER),
        ("assistant", "pipe"),
    ]
    assert first.meta["isBalanced"]
    assert GqaConfig(path=path, full_answer=True).build()[0].turns[1].text == "The pipe."


def test_textvqa_and_scienceqa(tmp_path):
    text = {"data": [{"question_id": 1, "image_id": "ab", "question": "brand?", "answers": ["x", "nokia", "nokia"]}]}
    sample = TextVqaConfig(path=str(write(tmp_path, text))).build()[0]
    assert flat(sample)[0][1] == tmp_path / "train_images/ab.jpg"
    assert sample.turns[1].text == "nokia"
    problem = {
        "question": "Which?",
        "choices": ["salt", "tin"],
        "answer": 1,
        "hint": "Look.",
        "image": "image.png",
        "split": "train",
    }
    problems = {"1": problem, "2": {**problem, "split": "test"}, "3": {**problem, "image": None, "hint": ""}}
    path = str(write(tmp_path, problems, "problems.json"))
    samples = everything(ScienceQaConfig(path=path).build())
    assert [sample.id for sample in samples] == ["1", "3"]
    asked = "Look.\nWhich?\nA. salt\nB. tin\nAnswer with the option's letter from the given choices directly."
    assert flat(samples[0]) == [("user", tmp_path / "train/1/image.png", "\n" + asked), ("assistant", "B")]
    assert flat(samples[1])[0] == ("user", asked.removeprefix("Look.\n"))
    assert len(ScienceQaConfig(path=path, split=None).build()) == 3


REF = {
    "img_id": 581857,
    "sents": ["lady in blue", "woman"],
    "bbox": [100, 50, 200, 100],
    "height": 200,
    "width": 400,
    "ref_id": 7,
}


def test_refcoco(tmp_path):
    path = str(write(tmp_path, [REF]))
    first, second = everything(RefCocoConfig(path=path).build())
    box = (0.25, 0.25, 0.75, 0.75)
    asked = "\nPlease provide the bounding box coordinate of the region this sentence describes: lady in blue."
    assert flat(first) == [("user", tmp_path / "COCO_train2014_000000581857.jpg", asked), ("assistant", ("", 0, box))]
    assert (first.id, second.id, first.meta["box"], second.meta["phrase"]) == ("7-0", "7-1", list(box), "woman")
    assert RefCocoConfig(path=path, box_form="xyxy").build()[0].meta["box"] == [0.25, 0.25, 0.5, 0.5]
    sample = RefCocoConfig(path=path, task="describe").build()[0]
    assert flat(sample)[0][2:] == ("\nPlease provide a short description for this region: ", ("", 0, box), ".")
    assert sample.turns[1].text == "lady in blue"
    with pytest.raises(DataError, match=r"one \{phrase\}"):
        RefCocoConfig(path=path, locate_prompt="where?")


def coco(tmp_path, refs):
    instances = {
        "images": [{"id": 5, "height": 200, "width": 400, "file_name": "x.jpg"}],
        "annotations": [{"id": 11, "image_id": 5, "bbox": [100, 50, 200, 100]}],
    }
    (tmp_path / "refs.p").write_bytes(refs if isinstance(refs, bytes) else pickle.dumps(refs, protocol=2))
    return str(tmp_path / "refs.p"), str(write(tmp_path, instances, "instances.json")), str(tmp_path / "flat.json")


def test_refs_pickle_becomes_flat_rows(tmp_path):
    ref = {
        "ref_id": 1,
        "ann_id": 11,
        "image_id": 5,
        "split": "testA",
        "sentences": [{"sent": "left one", "raw": "Left one."}],
    }
    places = coco(tmp_path, [ref, {**ref, "ref_id": 2, "split": "val"}])
    assert convert_refs(*places) == 2
    assert convert_refs(*places, split="testA") == 1
    sample = RefCocoConfig(path=places[2]).build()[0]
    assert sample.meta["box"] == [0.25, 0.25, 0.75, 0.75]
    with pytest.raises(DataError, match="no ref of split 'train'"):
        convert_refs(*places, split="train")
    with pytest.raises(DataError, match="ref 3"):
        convert_refs(*coco(tmp_path, [{**ref, "ref_id": 3, "ann_id": 12}]))


def test_refs_as_python_2_wrote_them(tmp_path):
    sentence = b"]}U\x04sentU\x06caf\xc3\xa9 sa"
    fields = b"U\x06ref_idK\x01U\x06ann_idK\x0bU\x08image_idK\x05U\x05splitU\x03valU\x09sentences" + sentence
    places = coco(tmp_path, b"\x80\x02]}(" + fields + b"ua.")
    assert convert_refs(*places) == 1
    assert RefCocoConfig(path=places[2]).build()[0].meta["phrase"] == "caf\u00e9"


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_a_hostile_refs_pickle_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    refs = pickle.dumps([Payload(str(marker))])
    with pytest.raises(DataError, match=r"asks for .*open"):
        convert_refs(*coco(tmp_path, refs))
    assert not marker.exists()
    pickle.loads(refs)[0].close()
    assert marker.exists()
    for broken in (b"", b"\x80\x02garbage", pickle.dumps({"a": 1}), pickle.dumps([1])):
        with pytest.raises(DataError):
            convert_refs(*coco(tmp_path, broken))


VQA = {"questions": [{"question_id": 1, "image_id": 5, "question": "q?"}]}
ANSWER = {"question_id": 1, "image_id": 5, "multiple_choice_answer": "a", "answers": []}


@pytest.mark.parametrize(
    ("config", "content", "message"),
    [
        (CocoCaptionsConfig, {"images": [], "annotations": [{"id": 1, "image_id": 2, "caption": "x"}]}, "`image_id` 2"),
        (CocoCaptionsConfig, {"images": [{"id": 2}], "annotations": []}, "an image is {'id': 2}"),
        (
            CocoCaptionsConfig,
            {"images": [{"id": 2, "file_name": "/a"}], "annotations": [{"image_id": 2, "caption": "x"}]},
            "is absolute",
        ),
        (
            CocoCaptionsConfig,
            {"images": [{"id": 2, "file_name": "a"}], "annotations": [{"image_id": 2, "caption": " "}]},
            "`caption` is empty",
        ),
        (CocoCaptionsConfig, {"images": [{"id": 2, "file_name": "a"}] * 2, "annotations": []}, "the image id 2 twice"),
        (CocoCaptionsConfig, {"images": [], "annotations": []}, "no row"),
        (CocoCaptionsConfig, {"images": []}, "expected: `annotations`"),
        (MiniGpt4CaptionsConfig, {"annotations": [{"caption": "x"}]}, "no `image_id`"),
        (MiniGpt4CaptionsConfig, {"annotations": [{"image_id": "../x", "caption": "x"}]}, "leaves the image folder"),
        (LavisCaptionsConfig, [{"image": "a", "caption": []}], "`caption` is []"),
        (LavisVqaConfig, [{"image": "a", "question": "q", "answer": [""]}], "`answers` is ['']"),
        (GqaConfig, {"1": {"question": "q", "imageId": "x", "answer": ""}}, "id '1'): `answer` is empty"),
        (GqaConfig, {"1": 3}, "a row of type int"),
        (GqaConfig, [], "expected: one object"),
        (TextVqaConfig, {"data": [{"question": "q", "image_id": "x"}]}, "the test split has none"),
        (
            ScienceQaConfig,
            {"1": {"question": "q", "choices": ["a"], "answer": 0, "split": "train"}},
            "`choices` is ['a']",
        ),
        (ScienceQaConfig, {"1": {"question": "q", "choices": ["a", "b"], "answer": 2, "split": "train"}}, "0 to 1"),
        (PopeConfig, [{"text": "q", "image": "a", "label": "maybe"}], "`label` is 'maybe'"),
        (RefCocoConfig, [{**REF, "sents": []}], "a sentence is []"),
        (RefCocoConfig, [{**REF, "bbox": [1, 2, 3]}], "four numbers"),
        (RefCocoConfig, [{**REF, "bbox": [300, 50, 200, 100]}], "are the boxes really xywh"),
        (RefCocoConfig, [{**REF, "width": 0}], "`width` and `height` in pixels"),
        (RefCocoConfig, [{**REF, "img_id": "x"}], "does not fit"),
    ],
)
def test_broken_rows(tmp_path, config, content, message):
    found = complaint(config(path=str(write(tmp_path, content))))
    assert message in found, found
    assert "data.json" in found


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        (VQA, {"annotations": []}, "no answer to question 1"),
        (
            VQA,
            {"annotations": [ANSWER, {**ANSWER, "question_id": 2}]},
            "1 answers without a question, the first to question 2",
        ),
        (VQA, {"annotations": [{**ANSWER, "image_id": 6}]}, "picture 5, and 6 in the annotations"),
        (VQA, {"annotations": [{**ANSWER, "multiple_choice_answer": ""}]}, "`multiple_choice_answer` is empty"),
        (VQA, {"annotations": [3]}, "a `question_id`"),
        (VQA, {"questions": []}, "`annotations`"),
        (VQA, None, "data.annotations"),
    ],
)
def test_broken_vqa(tmp_path, questions, annotations, message):
    answers = str(write(tmp_path, annotations, "a.json")) if annotations else ""
    found = complaint(VqaV2Config(path=str(write(tmp_path, questions)), annotations=answers))
    assert message in found, found
