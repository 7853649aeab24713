"""Frozen ids and supervised spans. Write them again with MMEXP_WRITE_GOLDENS=1 and look at the difference."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from mmexp.data.readers.llava import _images, _turns
from tests.shared_data import load_rows, load_template, segment_tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "golden"
CASES = {
    "vicuna_v1": ("llama2", [("annotations", "llava_instruct.json", 4), ("text", "mllm_demo_conversations.json", 6)]),
    "plain": ("llama2", [("annotations", "llava_pretrain.json", 6)]),
    "llava_v1": ("llama2", [("annotations", "llava_instruct.json", 2)]),
    "vicuna_v0": ("llama2", [("annotations", "llava_instruct.json", 2)]),
    "llama2": ("llama2", [("annotations", "llava_instruct.json", 2), ("text", "mllm_demo_conversations.json", 1)]),
    "mistral": ("llama2", [("annotations", "llava_instruct.json", 2)]),
    "minigpt4": ("llama2", [("annotations", "llava_instruct.json", 3)]),
    "minigpt4_llama2": ("llama2", [("annotations", "llava_instruct.json", 3)]),
    "minigpt4_align": ("llama2", [("annotations", "llava_pretrain.json", 3)]),
    "minigptv2": ("llama2", [("annotations", "llava_instruct.json", 2)]),
    "blip2_align": ("opt", [("annotations", "llava_pretrain.json", 3)]),
    "blip2_caption": ("opt", [("annotations", "llava_pretrain.json", 3)]),
    "blip2_lora": ("opt", [("annotations", "llava_pretrain.json", 3)]),
    "blip2_vqa": ("opt", [("annotations", "llava_instruct.json", 2)]),
    "blip2_t5_align": ("llama2", [("annotations", "llava_pretrain.json", 3)]),
    "blip2_t5_caption": ("llama2", [("annotations", "llava_pretrain.json", 3)]),
    "blip2_t5_vqa": ("llama2", [("annotations", "llava_instruct.json", 2)]),
    "blip2_represent": ("bert-base-uncased", [("annotations", "llava_pretrain.json", 4)]),
    "instructblip": ("llama2", [("annotations", "llava_instruct.json", 2), ("annotations", "llava_pretrain.json", 1)]),
    "instructblip_t5": ("llama2", [("annotations", "llava_instruct.json", 2)]),
    "qwen_vl": ("qwen", [("annotations", "llava_instruct.json", 2), ("text", "mllm_demo_conversations.json", 4)]),
    "qwen_vl_base": ("qwen", [("annotations", "llava_instruct.json", 2), ("annotations", "llava_pretrain.json", 2)]),
    "qwen25": ("qwen", [("annotations", "llava_instruct.json", 1)]),
    "internlm2": (
        "internlm2",
        [("annotations", "llava_instruct.json", 2), ("text", "mllm_demo_conversations.json", 4)],
    ),
    "internvl2_5": ("internlm2", [("annotations", "llava_instruct.json", 2)]),
    "chatml": ("qwen", [("annotations", "llava_instruct.json", 2), ("text", "mllm_demo_conversations.json", 4)]),
}


def spans(flags: list[bool]) -> list[list[int]]:
    """Supervised positions as [start, end) pairs."""
    found, place = [], 0
    for flag, group in itertools.groupby(flags):
        length = len(list(group))
        found += [[place, place + length]] if flag else []
        place += length
    return found


def test_every_template_with_a_vocabulary_here_is_frozen():
    shipped = {file.stem for file in (FOLDER.parents[1] / "conf/template").glob("*.yaml")}
    assert shipped - set(CASES) == {"llama3"}, "Llama-3's vocabulary is not among the tokenizers"


@pytest.mark.parametrize("name", CASES)
def test_ids_and_supervision_are_frozen(name):
    tokenizer_name, files = CASES[name]
    template = load_template(name)
    tokenizer = segment_tokenizer(tokenizer_name, *template.new_tokens)
    result = []
    for *place, count in files:
        for row in load_rows(*place)[:count]:
            segments = template.render(_turns(row, _images(row)), key=row["id"])
            encoded = tokenizer.encode(segments, {"image": 3})
            encoded.limit_answers(template.max_answer_tokens, template.answer_cut)
            media = [[run.start, run.length] for run in encoded.runs]
            result.append(
                {"id": row["id"], "ids": encoded.ids, "supervised": spans(encoded.supervised), "media": media}
            )
    path = FOLDER / f"template_{name}.json"
    if os.environ.get("MMEXP_WRITE_GOLDENS"):
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in result) + "\n]\n")
    assert json.loads(path.read_text()) == result
