"""Answers from a model: the generate predictor, one path for evaluation and chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mmexp.contracts import Item, Sample, Turn
from mmexp.data import Collator
from mmexp.engine.log import console
from mmexp.engine.matcher import Matcher
from mmexp.engine.scoring import score_answers
from mmexp.errors import ConfigError
from mmexp.evaluation import BenchmarkConfig, MultipleChoiceConfig, Score, evaluate, merge_results
from mmexp.evaluation.asking import Share
from mmexp.evaluation.base import Match, Predict
from mmexp.evaluation.runner import Results
from mmexp.llm import Sampling, Watch
from mmexp.model.together import Continuations
from mmexp.prompt import common_length

if TYPE_CHECKING:
    from mmexp.engine.manifest import RunDir
    from mmexp.model import MultimodalModel, Plan
    from mmexp.prompt.processor import Layout


class Generator:
    """Calls the model on conversations that end with a user turn.

    Args:
        model: In eval mode, on its device.
        plan: The plan it was built from.
        objective: With its heads, where the benchmarks need them.
    """

    def __init__(self, model: MultimodalModel, plan: Plan, objective: Any = None) -> None:
        self.model, self.plan, self.objective = model, plan, objective
        self.collate = Collator(pad_id=plan.tokenizer.pad_id, row="padded")

    def predict(self, samples: Sequence[Sample], sampling: Sampling) -> list[str]:
        """One answer a sample, in order. Media that several of them speak of are decoded, encoded and read once, unless
        the connector reads different instructions beside them."""
        processor = self.plan.processor
        layouts = [processor.prompt_layout(sample) for sample in samples]
        groups = self._groups(layouts)
        items = [processor.load(layouts[members[0]], samples[members[0]]) for members, _ in groups]
        batch = self.collate(items).to(self.device)
        tokenizer, sampling = self.plan.hf_tokenizer, self.ending(sampling)
        if len(groups) == len(samples):
            return self.model.generate(batch, tokenizer, sampling)
        members = [member for each, _ in groups for member in each]
        answers = self.model.generate(
            batch, tokenizer, sampling, continuations=Continuations(
                owners=tuple(row for row, (each, _) in enumerate(groups) for _ in each),
                lengths=tuple(length for _, length in groups),
                ids=tuple(torch.tensor(layouts[m].encoded.ids[length:]) for each, length in groups for m in each),
            )
        )  # fmt: skip
        by_sample = dict(zip(members, answers, strict=True))
        return [by_sample[index] for index in range(len(samples))]

    def score(
        self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], with_end: bool = False
    ) -> list[list[Score]]:
        """How likely the model finds each candidate as the answer to its sample, as the template writes answers.

        Args:
            samples: Conversations that end with a user turn.
            candidates: Per sample the texts to score.
            with_end: Count what ends an answer too. Without it no text is less likely than a longer one that begins
                with it.

        Returns:
            Per sample and candidate the summed log-probability of its tokens, given the prompt, and their number.

        Raises:
            ConfigError: the run has no LLM.
            DataError: a candidate is empty, or as `Processor.answer_layout`.
        """
        return score_answers(self.model, self.plan, samples, candidates, with_end)

    def _groups(self, layouts: Sequence[Layout]) -> list[tuple[list[int], int]]:
        """Prompts that begin alike, as their indices, and how many tokens they share; a prompt alone keeps its last."""
        by_media: dict[Any, list[int]] = {}
        for index, layout in enumerate(layouts):
            alone = not layout.media or not self.model.llm.shares_beginnings
            same = tuple(medium.identity for medium in layout.media), layout.instructions
            by_media.setdefault(index if alone else same, []).append(index)
        groups: list[tuple[list[int], int]] = []
        for members in by_media.values():
            encoded = [layouts[index].encoded for index in members]
            length = common_length([each.ids for each in encoded], [each.runs for each in encoded])
            if length:
                groups.append((members, length))
            else:
                groups += [([index], len(layouts[index].encoded.ids) - 1) for index in members]
        return groups

    def predictor(self, benchmark: BenchmarkConfig) -> Predict | Match:
        """What a benchmark asks, with its settings. Raises ConfigError as `matcher`."""
        if benchmark.needs == "embed":
            return self.matcher()
        if isinstance(benchmark, MultipleChoiceConfig):
            return benchmark.predictor(self.score)
        sampling = Sampling(
            max_new_tokens=benchmark.max_new_tokens,
            min_new_tokens=benchmark.min_new_tokens,
            num_beams=benchmark.num_beams,
            length_penalty=benchmark.length_penalty,
        )
        return lambda samples: self.predict(samples, sampling)

    def matcher(self) -> Matcher:
        """What compares images with texts.

        Raises:
            ConfigError: the run's objective does not.
        """
        if not hasattr(self.objective, "embed_image"):
            raise ConfigError("this run has not learned to compare images with texts",
                              expected="a run with objective=blip2_represent", where="evaluation",
                              fix="a benchmark that asks for answers")  # fmt: skip
        return Matcher(self.model, self.plan, self.objective.eval().to(self.device))

    def stream(self, turns: Sequence[Turn], sampling: Sampling, on_text: Callable[[str], None]) -> str:
        """The answer to one conversation, handed out as it comes."""
        item = self.plan.processor.encode_prompt(tuple(turns), id="chat")
        batch = self.collate([item]).to(self.device)
        return self.model.generate(batch, self.plan.hf_tokenizer, self.ending(sampling), on_text)[0]

    def answer(self, items: Sequence[Item], sampling: Sampling, watch: Watch) -> None:
        """Makes the answers to some prompts; `watch` gets their tokens and may end them."""
        batch = self.collate(items).to(self.device)
        self.model.generate(batch, self.plan.hf_tokenizer, self.ending(sampling), watch=watch)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def ending(self, sampling: Sampling) -> Sampling:
        """The sampling with what ends an answer in this template."""
        template, tokenizer = self.plan.template, self.plan.tokenizer
        return replace(sampling, stop=sampling.stop or template.stop, stop_ids=tokenizer.stop_ids(template))


def evaluate_run(
    generator: Generator,
    benchmarks: Mapping[str, BenchmarkConfig],
    run: RunDir,
    splits: Sequence[str] | None = None,
    share: Share | None = None,
) -> Results:
    """Runs benchmarks on a model and adds their figures to the run's results.json; of a share it keeps the answers."""
    generator.model.eval()
    results: Results = {}
    for name, benchmark in benchmarks.items():
        chosen = None if splits is None else [split for split in splits if split in benchmark.splits]
        boxes = generator.plan.processor.boxes
        figures = evaluate(name, benchmark, generator.predictor(benchmark), run.path, console, chosen, boxes,
                           run.weights_identity, share)  # fmt: skip
        if share is None:
            results = merge_results(run.results, figures)
    return results
