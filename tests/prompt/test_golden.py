"""Frozen ids and supervised spans. Write them again with MMEXP_WRITE_GOLDENS=1 and look at the difference."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from mmexp.data.readers.llava import _images, _turns
from mmexp.prompt import SegmentTokenizer
from tests.shared_data import load_rows, load_template, load_tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "golden"
CASES = {
    "vicuna_v1": ("llama2", [("annotations", "llava_instruct.json", 4), ("text", "mllm_demo_conversations.json", 6)]),
    "plain": ("llama2", [("annotations", "llava_pretrain.json", 6)]),
    "llava_v1": ("llama2", [("annotations", "llava_instruct.json", 2)]),
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


@pytest.mark.parametrize("name", CASES)
def test_ids_and_supervision_are_frozen(name):
    tokenizer_name, files = CASES[name]
    tokenizer, template = SegmentTokenizer(load_tokenizer(tokenizer_name)), load_template(name)
    result = []
    for *place, count in files:
        for row in load_rows(*place)[:count]:
            encoded = tokenizer.encode(template.render(_turns(row, _images(row))), {"image": 3})
            media = [[run.start, run.length] for run in encoded.runs]
            result.append(
                {"id": row["id"], "ids": encoded.ids, "supervised": spans(encoded.supervised), "media": media}
            )
    path = FOLDER / f"template_{name}.json"
    if os.environ.get("MMEXP_WRITE_GOLDENS"):
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in result) + "\n]\n")
    assert json.loads(path.read_text()) == result
