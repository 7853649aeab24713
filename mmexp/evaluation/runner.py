"""Runs a benchmark: predict, grade, the baselines beside it, and everything on disk."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from PIL import Image
from rich.console import Console

from mmexp.contracts import Medium, Sample, Size, Turn
from mmexp.errors import CheckpointError, ConfigError, DataError
from mmexp.evaluation.asking import Asker, KeptAnswers, Share
from mmexp.evaluation.base import BenchmarkConfig, Graded, Match, Predict, answer, question_type
from mmexp.evaluation.retrieval import RetrievalConfig
from mmexp.prompt import BoxText, image_size
from mmexp.whole import write_json, write_json_lines

log = logging.getLogger(__name__)

Results = dict[str, dict[str, dict[str, float]]]
"""{split: {benchmark: {metric: value}}}, the primary metric first."""

_GREY = (128, 128, 128)


@dataclass(frozen=True, kw_only=True)
class _Answers:
    texts: list[str]
    graded: Graded


def evaluate(
    name: str,
    benchmark: BenchmarkConfig,
    predict: Predict | Match,
    out_dir: Path,
    progress: Console | None = None,
    splits: Sequence[str] | None = None,
    boxes: BoxText | None = None,
    identity: str = "",
    share: Share | None = None,
) -> Results:
    """Every figure of one benchmark; predictions go to `<out_dir>/predictions/<split>_<name>.jsonl`.

    The blind baseline is `predict` on the same samples with grey images of the same size. The majority baseline
    answers what is most frequent for the question's type in that very split (see `BenchmarkConfig.majority`).

    Args:
        name: The benchmark's name in results and file names.
        predict: Gets samples without their answer, `benchmark.batch_size` at a time; for a benchmark that needs
            `embed`, what compares images with texts.
        out_dir: The run directory.
        progress: Where the bar is drawn; only a terminal shows one. None: standard error.
        splits: Only these splits; None takes all.
        boxes: How the model writes boxes (`Processor.boxes`). None: decimals of the picture.
        identity: What tells this model from others. An evaluation that was stopped goes on where it was when it is
            asked again with the same one; empty starts anew.
        share: Only these questions are asked and kept, without any figures; asked again without it, by anyone with the
            same `identity`, the shares are put together.

    Raises:
        ConfigError: A split is unknown.
        DataError: A split is empty, a sample has no answer, or the benchmark cannot ask it.
    """
    console = progress or Console(stderr=True)
    results: Results = {}
    for split in benchmark.splits if splits is None else splits:
        if split not in benchmark.splits:
            raise ConfigError(f"no split {split!r}", expected=", ".join(benchmark.splits), where=f"evaluation.{name}")
        began = time.monotonic()
        samples = load_samples(name, benchmark, split)
        for sample in samples:
            benchmark.check(sample)
        asked = [_without_answer(sample) for sample in samples]
        kept_file = out_dir / "predictions" / f".{split}_{name}.answers"
        kept = KeptAnswers(kept_file, identity and f"{identity} {benchmark}", share)
        asker = Asker(kept, benchmark.batch_size, f"{name} {split}", console, share)
        if share is not None:
            _fill(benchmark, asked, predict, asker)
            continue
        answers = _answer(benchmark, boxes or BoxText(), samples, asked, predict, asker)
        metrics = _metrics(benchmark.primary, samples, answers)
        results[split] = {name: metrics}
        lines = _lines(samples, asked, answers, out_dir)
        write_json_lines(out_dir / "predictions" / f"{split}_{name}.jsonl", lines)
        kept.drop()
        shown = ", ".join(f"{key} {metrics[key]:.3f}" for key in (benchmark.primary, *benchmark.baselines))
        log.info("%s on %s: %s; %d samples, %.0f s", name, split, shown, len(samples), time.monotonic() - began)
    return results


def merge_results(path: Path, new: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Results:
    """Adds figures to a results.json, atomically; a benchmark that is run again replaces its old figures.

    Raises:
        CheckpointError: The file that is there is damaged.
    """
    merged: Results = {}
    if path.is_file():
        try:
            merged = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"not JSON: {error}", where=str(path), fix="move the file away") from error
    for split, benchmarks in new.items():
        merged.setdefault(split, {}).update({name: dict(metrics) for name, metrics in benchmarks.items()})
    write_json(path, merged)
    return merged


def _fill(benchmark: BenchmarkConfig, asked: Sequence[Sample], predict: Predict | Match, asker: Asker) -> None:
    """Asks a share. What compares all samples with all texts has none: it is done when the shares are put together."""
    if isinstance(benchmark, RetrievalConfig):
        log.info("%s: compares everything with everything, and waits for the call without share=", asker.label)
        return
    predict = cast("Predict", predict)
    count = len(asker.fill(predict, asked))
    if "blind" in benchmark.baselines:
        asker.fill(predict, _blinded(asked), "blind")
    log.info("%s: %d of %d samples are answered", asker.label, count, len(asked))


def _answer(
    benchmark: BenchmarkConfig,
    boxes: BoxText,
    samples: Sequence[Sample],
    asked: Sequence[Sample],
    predict: Predict | Match,
    asker: Asker,
) -> dict[str, _Answers]:
    """What the model ("") and each baseline answers, graded."""
    grader = benchmark.grader(boxes)

    def graded(texts: list[str]) -> _Answers:
        grades = grader.grade(samples, texts)
        return _Answers(texts=list(grades.texts) or texts, graded=grades)

    if isinstance(benchmark, RetrievalConfig):
        found, metrics = benchmark.retrieve(samples, cast("Match", predict))
        return {"": _Answers(texts=found, graded=replace(benchmark.grade(samples, found), metrics=metrics))}
    predict = cast("Predict", predict)
    answers = {"": graded(asker.ask(predict, asked))}
    if "blind" in benchmark.baselines:
        answers["blind"] = graded(asker.ask(predict, _blinded(asked), "blind"))
    if "majority" in benchmark.baselines:
        answers["majority"] = graded(grader.majority(samples))
    return answers


def load_samples(name: str, benchmark: BenchmarkConfig, split: str) -> list[Sample]:
    """What the benchmark `name` asks on a split, with the answers. Raises DataError where there is nothing."""
    dataset = benchmark.splits[split].build()
    size = len(dataset)
    if size == 0:
        raise DataError("no samples", where=f"evaluation.{name}.splits.{split}", fix=f"check the file of split {split}")
    count = min(size, benchmark.limit or size)
    return [dataset[index * size // count] for index in range(count)]


def _without_answer(sample: Sample) -> Sample:
    """The sample up to its last user turn."""
    last = max(index for index, turn in enumerate(sample.turns) if turn.role == "user")
    return replace(sample, turns=sample.turns[: last + 1])


def _blinded(samples: Sequence[Sample]) -> list[Sample]:
    def blind(turn: Turn, sample: Sample) -> Turn:
        parts = tuple(_blank(part, sample) if isinstance(part, Medium) else part for part in turn.parts)
        return replace(turn, parts=parts)

    return [replace(sample, turns=tuple(blind(turn, sample) for turn in sample.turns)) for sample in samples]


def _blank(medium: Medium, sample: Sample) -> Medium:
    """The medium with nothing on it. Raises BadMediaError when its size cannot be read."""
    if medium.modality != "image":
        raise ConfigError(
            f"the blind baseline has no blank {medium.modality} (sample {sample.id})",
            expected="images",
            where="evaluation.*.baselines",
            fix="evaluation.<benchmark>.baselines=[majority]",
        )
    return replace(
        medium, source=_grey(image_size(medium.source, f"{sample.dataset or 'evaluation data'}, sample {sample.id}"))
    )


@lru_cache(maxsize=64)
def _grey(size: Size) -> Image.Image:
    """One picture for all samples of that size, so that it is looked at once."""
    return Image.new("RGB", size, _GREY)


def _metrics(primary: str, samples: Sequence[Sample], answers: Mapping[str, _Answers]) -> dict[str, float]:
    """The primary metric, the same of each baseline, further metrics, and all of it per question type."""
    kinds = [question_type(sample) for sample in samples]
    metrics = {way or primary: fmean(result.graded.scores) for way, result in answers.items()}
    metrics |= dict(answers[""].graded.metrics)
    for kind in dict.fromkeys(kinds) if len(set(kinds)) > 1 else ():
        for way, result in answers.items():
            scores = (score for score, own in zip(result.graded.scores, kinds, strict=True) if own == kind)
            metrics[f"{way or primary}/{kind or 'other'}"] = fmean(scores)
    return {key: round(value, 6) for key, value in metrics.items()} | {"num_samples": len(samples)}


def _lines(
    samples: Sequence[Sample], asked: Sequence[Sample], answers: Mapping[str, _Answers], out_dir: Path
) -> Iterable[dict[str, Any]]:
    """One line of the predictions file for each sample."""
    own, blind = answers[""], answers.get("blind")
    for index, (sample, question) in enumerate(zip(samples, asked, strict=True)):
        line: dict[str, Any] = {
            "id": sample.id,
            "prompt": _prompt(question),
            "prediction": own.texts[index],
            "target": answer(sample),
            "score": round(own.graded.scores[index], 6),
            "type": question_type(sample),
            "image": _image_path(question, out_dir),
        }
        if blind is not None:
            line |= {"blind": blind.texts[index], "blind_score": round(blind.graded.scores[index], 6)}
        yield line | dict(own.graded.details[index] if own.graded.details else {})


def _prompt(question: Sample) -> str:
    """What was asked; with earlier turns, everything said so far, a line each."""
    spoken = [turn for turn in question.turns if turn.role != "system"]
    if len(spoken) == 1:
        return spoken[0].text.strip()
    return "\n".join(f"{turn.role}: {turn.text.strip()}" for turn in spoken)


def _image_path(question: Sample, out_dir: Path) -> str | None:
    """The first image, relative to the run directory or the working directory when it lies there."""
    media = (medium for turn in question.turns for medium in turn.media)
    source = next((medium.source for medium in media if medium.modality == "image"), None)
    if not isinstance(source, str | Path):
        return None
    path = Path(source).absolute()
    for base in (out_dir.absolute(), Path.cwd()):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.as_posix()
