"""Requests of lmms-eval to conversations of a run, and its answers back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lmms_eval.api.model import lmms
from tqdm import tqdm

from mmexp.contracts import Medium, Part, Sample, Text, Turn
from mmexp.errors import ConfigError, DataError
from mmexp.serve.request import with_pictures_first

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance

    from mmexp.llm import Sampling

_CHOOSING = {
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "temperature",
    "top_p",
    "repetition_penalty",
}
_UNDERSTOOD = _CHOOSING | {"do_sample", "until"}
_MAX_NEW_TOKENS = 1024
"""Of tasks that do not say."""


class RunModel(lmms):
    """Answers the requests of tasks with a run's own template and pictures processed as in its training.

    Args:
        run: The run directory; `pretrained` is another name for it.
        batch_size: Questions at a time.
        config_dir: A folder of choices of your own that the run names.
        device: Nothing but what mmexp chooses: the GPU where there is one.
        seed: Of sampling, for tasks with a temperature.

    Raises:
        ConfigError: no run, an unknown argument, or several processes.
    """

    is_simple = False

    def __init__(
        self,
        run: str | None = None,
        pretrained: str | None = None,
        batch_size: int | str | None = 8,
        config_dir: str | None = None,
        device: str | None = None,
        seed: int | str = 0,
        **unknown: Any,
    ) -> None:
        from mmexp.answering import generator_of_run
        from mmexp.config import folders_of, registered_targets

        super().__init__()
        path = run or pretrained
        unknown = {name: value for name, value in unknown.items() if value is not None and name != "max_batch_size"}
        if path is None or unknown:
            found = f"unknown: {', '.join(unknown)}" if unknown else "no run"
            raise ConfigError(found, expected="run=DIR, batch_size, config_dir, seed", where="--model_args")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ConfigError("several processes", expected="one", where="WORLD_SIZE", fix="python -m lmms_eval ...")
        self.generator = generator_of_run(path, registered_targets(folders_of(config_dir)))
        self.batch_size = int(batch_size or 1)
        self.seed = int(seed)

    @property
    def device(self) -> Any:
        """Where the model is; lmms-eval asks."""
        return self.generator.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One answer a request, in their order; requests that are answered in the same way share batches.

        Raises:
            DataError: a medium that is no picture, or a prompt that is too long.
            ConfigError: a way to choose tokens that is not known here.
        """
        answers: dict[int, str] = {}
        with tqdm(total=len(requests), desc="mmexp") as bar:
            for settings, places in _alike(requests):
                sampling = self._sampling(settings)
                for start in range(0, len(places), self.batch_size):
                    batch = places[start : start + self.batch_size]
                    texts = self.generator.predict([self._sample(requests[place]) for place in batch], sampling)
                    for place, text in zip(batch, texts, strict=True):
                        answers[place] = _cut(text, settings.get("until"))
                        self.cache_hook.add_partial(
                            "generate_until", (_Asked.of(requests[place]).context, settings), answers[place]
                        )
                    bar.update(len(batch))
        return [answers[place] for place in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered for conversations: lmms-eval's own chat models do not, either."""
        raise ConfigError(
            "a task that asks for likelihoods", expected="output_type: generate_until", where=_task(requests)
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered."""
        raise ConfigError("a task of several rounds", expected="output_type: generate_until", where=_task(requests))

    def _sampling(self, settings: Mapping[str, Any]) -> Sampling:
        from mmexp.llm import Sampling

        if strange := sorted(set(settings) - _UNDERSTOOD):
            raise ConfigError(", ".join(strange), expected=", ".join(sorted(_UNDERSTOOD)), where="generation_kwargs")
        known = {name: settings[name] for name in _CHOOSING if settings.get(name) is not None}
        if not settings.get("do_sample", known.get("temperature", 0) > 0):
            known |= {"temperature": 0.0, "top_p": 1.0}
        return Sampling(
            **{"max_new_tokens": _MAX_NEW_TOKENS, **known}, seed=self.seed if known.get("temperature") else None
        )

    def _sample(self, request: Instance) -> Sample:
        asked = _Asked.of(request)
        row = self.task_dict[asked.task][asked.split][asked.row]
        where = f"{asked.task}/{asked.split}, row {asked.row}"
        return Sample(id=where, turns=tuple(_turn(each, where) for each in asked.to_messages(row)), dataset=asked.task)


class _Asked(NamedTuple):
    """The arguments of a request to a chat model of lmms-eval."""

    context: str | None
    to_messages: Callable[[Any], list[dict[str, Any]]]
    settings: dict[str, Any]
    row: int
    task: str
    split: str

    @classmethod
    def of(cls, request: Any) -> _Asked:
        return cls(*request.args)


def _alike(requests: Sequence[Instance]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Requests of equal settings, as their places, short questions first."""
    asked = [_Asked.of(request) for request in requests]
    groups: dict[str, list[int]] = {}
    for place, each in enumerate(asked):
        groups.setdefault(json.dumps(each.settings, sort_keys=True, default=str), []).append(place)
    for places in groups.values():
        yield asked[places[0]].settings, sorted(places, key=lambda place: len(asked[place].context or ""))


def _turn(message: Mapping[str, Any], where: str) -> Turn:
    content = message["content"]
    parts: list[Part] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            parts.append(Text(text=part["text"]))
        elif part["type"] == "image":
            parts.append(Medium(source=part["url"]))
        else:
            raise DataError(f"a part of type {part['type']}", expected="text and pictures", where=where)
    return with_pictures_first(Turn(role=message["role"], parts=tuple(parts)))


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    """The answer up to the first of the texts that end it."""
    for end in [until] if isinstance(until, str) else until or []:
        text = text.split(end, 1)[0] if end else text
    return text


def _task(requests: Sequence[Any]) -> str:
    return str(requests[0].args[-2]) if requests else "--tasks"
