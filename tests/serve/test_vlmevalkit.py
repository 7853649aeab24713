"""The file that users copy into VLMEvalKit, beside a stand-in for its base class: the package is in no registry."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mmexp.answering import generator_of_run
from mmexp.config import folders_of, registered_targets
from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.llm import Sampling

FILE = Path(__file__).parents[2] / "experiments" / "vlmevalkit_model.py"


class BaseModel:
    """What VLMEvalKit's class does before `generate_inner`, for a list of parts."""

    INTERLEAVE = False
    allowed_types = ("text", "image")

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)  # type: ignore[attr-defined]  # of the subclass


def test_a_message_gets_the_answer_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = ModuleType("vlmeval.vlm.base")
    base.BaseModel = BaseModel  # type: ignore[attr-defined]  # a stand-in
    for name, module in (
        ("vlmeval", ModuleType("vlmeval")),
        ("vlmeval.vlm", ModuleType("vlmeval.vlm")),
        (base.__name__, base),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("vlmevalkit_model", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    picture = str(run.parents[3] / "pictures" / "3.png")
    model = module.MmexpRun(run=str(run), max_new_tokens=6)
    said = model.generate([{"type": "text", "value": "What?"}, {"type": "image", "value": picture}], dataset="MME")
    turn = Turn(role="user", parts=(Medium(source=picture), Text(text="\n"), Text(text="What?")))
    generator = generator_of_run(str(run), registered_targets(folders_of(None)))
    assert [said] == generator.predict([Sample(id="", turns=(turn,))], Sampling(max_new_tokens=6))
    assert said != model.generate([{"type": "text", "value": "What?"}])
