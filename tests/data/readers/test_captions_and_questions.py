"""Captions, questions and referring expressions: rows of the published layouts, the real files, and broken ones."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter

import pytest

from mmexp.data import (
    AutoConfig,
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
from mmexp.data.readers.prompts import BRIEF_PROMPTS, DETAILED_PROMPTS, SHORT_ANSWER, accepted
from mmexp.errors import DataError
from mmexp.evaluation import CaptionConfig
from mmexp.evaluation.base import targets
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


def test_real_captions_of_a_picture_are_its_references():
    path = shared("annotations", "captions.json")
    source = json.loads(path.read_text())
    data = CocoCaptionsConfig(path=str(path), image_root=str(path.parents[1]), per="picture").build()
    expected: dict[int, list[str]] = {}
    for row in source["annotations"]:
        expected.setdefault(row["image_id"], []).append(row["caption"])
    assert [(int(sample.id), list(targets(sample))) for sample in everything(data)] == list(expected.items())
    assert all(sample.turns[1].text == sample.meta["targets"][0] for sample in everything(data))
    graded = CaptionConfig(splits={}).grade(everything(data), [sample.turns[1].text for sample in everything(data)])
    assert graded.metrics["bleu_4"] == pytest.approx(1.0)


def test_answers_that_three_people_gave_count():
    assert accepted(["a", "b", "b", "b", {"answer": "c"}, "c"], "a") == ["a", "b"]
    assert accepted([], "a") == ["a"]


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
        assert targets(sample)[0] == row["multiple_choice_answer"]
        votes = Counter(sample.meta["answers"])
        assert {text for text in votes if votes[text] >= 3} <= set(targets(sample)) <= {*votes, targets(sample)[0]}


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
    assert second.meta == {"captions": ["two", "three"], "targets": ["two", "three"]}
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
    assert (samples[0].meta["options"], samples[0].meta["right"]) == (["salt", "tin"], 1)
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


REFS = [
    {
        "ref_id": 1,
        "ann_id": 11,
        "image_id": 5,
        "split": "testA",
        "sentences": [{"sent": "left one", "raw": "Left one."}, {"sent": "left", "raw": "left"}],
    }
]
INSTANCES = {
    "images": [{"id": 5, "height": 200, "width": 400, "file_name": "x.jpg"}],
    "annotations": [{"id": 11, "image_id": 5, "bbox": [100, 50, 200, 100]}],
}


def refs(tmp_path, content, instances=INSTANCES, **options):
    path = write(tmp_path, content if isinstance(content, bytes) else pickle.dumps(content, protocol=2), "refs(unc).p")
    return RefCocoConfig(path=str(path), instances=str(write(tmp_path, instances, "instances.json")), **options)


def test_refs_pickle_is_read_with_its_instances(tmp_path):
    both = [*REFS, {**REFS[0], "ref_id": 2, "split": "val"}]
    assert [sample.id for sample in everything(refs(tmp_path, both).build())] == ["1-0", "1-1", "2-0", "2-1"]
    data = refs(tmp_path, both, split="testA").build()
    assert [sample.meta["phrase"] for sample in everything(data)] == ["left one", "left"]
    assert flat(data[0])[1] == ("assistant", ("", 0, (0.25, 0.25, 0.75, 0.75)))
    assert flat(data[0])[0][1] == tmp_path / "COCO_train2014_000000000005.jpg"
    assert flat(pickle.loads(pickle.dumps(data))[1]) == flat(data[1])
    assert "no row" in complaint(refs(tmp_path, both, split="train"))
    assert len(AutoConfig(path=data._path).build()) == 4
    for protocol in (0, 4):
        data = refs(tmp_path, pickle.dumps(both, protocol)).build()
        assert [sample.meta["split"] for sample in everything(data)] == ["testA", "testA", "val", "val"]


def test_where_the_instances_file_lies_is_no_other_data(tmp_path):
    there = refs(tmp_path / "elsewhere", REFS)
    assert there.build().fingerprint == refs(tmp_path, REFS).build().fingerprint
    other = {**INSTANCES, "annotations": [{"id": 11, "image_id": 5, "bbox": [100, 50, 200, 101]}]}
    assert there.build().fingerprint != refs(tmp_path, REFS, other).build().fingerprint


def test_refs_as_python_2_wrote_them(tmp_path):
    sentence = b"]}U\x04sentU\x06caf\xc3\xa9 sa"
    fields = b"U\x06ref_idK\x01U\x06ann_idK\x0bU\x08image_idK\x05U\x05splitU\x03valU\x09sentences" + sentence
    assert refs(tmp_path, b"\x80\x02]}(" + fields + b"ua.").build()[0].meta["phrase"] == "caf\u00e9"


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_a_hostile_refs_pickle_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    hostile = pickle.dumps([Payload(str(marker))])
    assert re.search("asks for .*open", complaint(refs(tmp_path, hostile)))
    assert not marker.exists()
    pickle.loads(hostile)[0].close()
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "instances", "message"),
    [
        (b"\x80\x02garbage", INSTANCES, "the pickle cannot be read safely"),
        ({"a": 1}, INSTANCES, "a dict\n  expected: a list of refs"),
        ([1], INSTANCES, "a list of refs"),
        ([{**REFS[0], "ann_id": 12}], INSTANCES, "row 0 (line 1, id 'row-0'): ref 1: no ann_id 12 in "),
        ([{**REFS[0], "image_id": 6}], INSTANCES, "ref 1: no image_id 6 in "),
        ([{**REFS[0], "ref_id": (1,)}], INSTANCES, "`ref_id` of a ref is (1,)"),
        ([{**REFS[0], "ref_id": b"x"}], INSTANCES, "it asks for _codecs.encode"),
        ([{**REFS[0], "sentences": 3}], INSTANCES, "a sentence is 3"),
        (REFS, {"images": [], "annotations": [{"bbox": [1, 2, 3, 4]}]}, "an entry of `annotations` is {'bbox'"),
        (REFS, {"images": []}, "expected: `annotations`"),
        (REFS, {**INSTANCES, "images": [{"id": 5}]}, "a picture of None x None"),
        (json.dumps([REF]).encode(), INSTANCES, "data.instances is set, and the file is no pickle"),
    ],
)
def test_broken_refs(tmp_path, content, instances, message):
    content = json.loads(json.dumps(content)) if isinstance(content, dict) else content
    found = complaint(refs(tmp_path, content, instances))
    assert message in found.replace(str(tmp_path), ""), found


def test_a_pickle_needs_its_instances(tmp_path):
    path = str(write(tmp_path, pickle.dumps(REFS), "refs.p"))
    assert "data.instances=instances.json" in complaint(RefCocoConfig(path=path))
    assert "data.instances=instances.json" in complaint(AutoConfig(path=path))
    flat_rows = str(write(tmp_path, [REF]))
    assert "no `split` in the row" in complaint(RefCocoConfig(path=flat_rows, split="val"))


PROBLEM = {"question": "q", "choices": ["a", "b"], "answer": 1, "split": "train"}
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
        (CocoCaptionsConfig, {"images": [], "annotations": [{"image_id": [2], "caption": "x"}]}, "`image_id` [2]"),
        (
            GqaConfig,
            {"1": {"question": "q", "imageId": ["x"], "answer": "a"}},
            "`imageId` is ['x'], which does not fit",
        ),
        (ScienceQaConfig, {"1": {**PROBLEM, "hint": 3}}, "`hint` is 3"),
        (ScienceQaConfig, {"1": {**PROBLEM, "answer": True}}, "`answer` is True"),
        (ScienceQaConfig, {"1": {**PROBLEM, "choices": ["a", 2]}}, "`choices` is ['a', 2]"),
        (ScienceQaConfig, {"1": {**PROBLEM, "split": None}}, "`split` is None"),
        (ScienceQaConfig, {"1": {**PROBLEM, "image": ["a"]}}, "which does not fit '{split}/{id}/{image}'"),
        (LavisCaptionsConfig, [{"image": "a", "caption": ["x", 3]}], "`caption` is 3"),
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
        (VQA, {"annotations": [{**ANSWER, "question_id": [1]}]}, "a `question_id`"),
        (VQA, {"annotations": [ANSWER, ANSWER]}, "the answers to question 1 twice"),
        (VQA, {"annotations": [{**ANSWER, "answers": "a"}]}, "`answers` is 'a'"),
        (VQA, {"annotations": [{**ANSWER, "answers": [{"text": "a"}]}]}, "`answers` is [None]"),
        ({"questions": VQA["questions"] * 2}, {"annotations": [ANSWER]}, "question 1 twice"),
        (VQA, {"questions": []}, "`annotations`"),
        (VQA, None, "data.annotations"),
    ],
)
def test_broken_vqa(tmp_path, questions, annotations, message):
    answers = str(write(tmp_path, annotations, "a.json")) if annotations else ""
    found = complaint(VqaV2Config(path=str(write(tmp_path, questions)), annotations=answers))
    assert message in found, found
