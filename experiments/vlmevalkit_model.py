"""A finished run as a model of VLMEvalKit, which has no plugins: copy this file to `vlmeval/vlm/mmexp_run.py` and add
to `supported_VLM` in `vlmeval/config.py`, in an environment that holds both programs:

    'my_run': partial(MmexpRun, run='outputs/llava15/llava15_instruct/tour'),

with `from vlmeval.vlm.mmexp_run import MmexpRun`; then `python run.py --model my_run --data MME`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmeval.vlm.base import BaseModel  # pyright: ignore[reportMissingImports]

from mmexp.answering import generator_of_run
from mmexp.config import folders_of, registered_targets
from mmexp.contracts import Medium, Part, Sample, Text, Turn
from mmexp.llm import Sampling
from mmexp.serve.request import with_pictures_first


class MmexpRun(BaseModel):
    """Greedy answers, with the run's own template.

    Args:
        run: The run directory.
        max_new_tokens: Of an answer.
        config_dir: A folder of choices of your own that the run names.
    """

    INTERLEAVE = True

    def __init__(self, run: str, max_new_tokens: int = 512, config_dir: str | None = None) -> None:
        self.generator = generator_of_run(run, registered_targets(folders_of(config_dir)))
        self.sampling = Sampling(max_new_tokens=max_new_tokens)

    def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """The answer to one message: parts of type `text` and `image`, a picture by its path."""
        parts: list[Part] = [
            Medium(source=part["value"]) if part["type"] == "image" else Text(text=part["value"]) for part in message
        ]
        turn = with_pictures_first(Turn(role="user", parts=tuple(parts)))
        return self.generator.predict([Sample(id=dataset or "", turns=(turn,))], self.sampling)[0]
