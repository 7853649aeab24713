"""Which predictions a report shows, and how they become pictures and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmexp.page import Run, data_uri, find_image, load_thumbnail
from mmexp.report.entries import Box, Entry


def pick(lines: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Half right and half wrong, as far as there are enough, each half spread over the question types.

    Where the score is a matter of degree, samples from the best to the worst.
    """
    if not all(line.get("score") in (0, 1) for line in lines):
        ranked = sorted(lines, key=lambda line: -float(line.get("score") or 0))
        return _spread(ranked, count)
    right = [line for line in lines if line.get("score") == 1]
    wrong = [line for line in lines if line.get("score") == 0]
    num_wrong = min(len(wrong), max(count // 2, count - len(right)))
    by_type = (sorted(half, key=lambda line: str(line.get("type") or "")) for half in (right, wrong))
    chosen = zip(by_type, (count - num_wrong, num_wrong), strict=True)
    return [line for half, share in chosen for line in _spread(half, share)]


def load_entry(line: Mapping[str, Any], graded: bool, run_dir: Path) -> Entry:
    """A predictions line with its image. `graded`: the score is a matter of degree."""
    boxes = line.get("boxes")
    boxes = boxes if isinstance(boxes, dict) else {}
    score = line.get("score")
    score = float(score) if isinstance(score, int | float) else None
    blind = line.get("blind")
    return Entry(
        image=load_thumbnail(find_image(line.get("image"), run_dir)),
        prompt=str(line.get("prompt") or ""),
        prediction=str(line.get("prediction") or ""),
        target=str(line.get("target") or ""),
        title=str(line.get("type") or ""),
        right=None if graded or score is None else score >= 1,
        score=score,
        blind=None if blind is None else str(blind),
        target_box=_box(boxes.get("target")),
        predicted_box=_box(boxes.get("predicted")),
    )


def load_groups(run: Run, count: int = 6) -> dict[str, list[Entry]]:
    """Per benchmark and split a heading and a handful of samples, in the order of results.json."""
    known = {f"{split}_{name}": f"{name} on {split}" for split, group in run.results.items() for name in group}
    stems = [stem for stem in known if stem in run.predictions] + [s for s in run.predictions if s not in known]
    groups = {}
    for stem in stems:
        lines = run.predictions[stem]
        graded = not all(line.get("score") in (0, 1) for line in lines)
        groups[known.get(stem, stem)] = [load_entry(line, graded, run.path) for line in pick(lines, count)]
    return groups


def entry_html(entry: Entry) -> str:
    """One card of the page."""
    if entry.image is None:
        picture = '<div class="noimage">no image</div>'
    else:
        boxes = _box_svg(entry.target_box, "target") + _box_svg(entry.predicted_box, "predicted")
        overlay = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{boxes}</svg>' if boxes else ""
        picture = f'<div class="picture"><img alt="" src="{data_uri(entry.image)}">{overlay}</div>'
    verdict = ""
    if entry.right is not None:
        verdict = (
            '<b class="mark right">&#10003; right</b>' if entry.right else '<b class="mark wrong">&#10007; wrong</b>'
        )
    elif entry.score is not None:
        verdict = f'<b class="mark">score {entry.score:.2f}</b>'
    rows = [("answer", entry.prediction or "(empty)"), ("target", entry.target)]
    rows += [("blind", entry.blind or "(empty)")] if entry.blind is not None else []
    facts = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows)
    kind = f'<span class="kind">{escape(entry.title)}</span>' if entry.title else ""
    prompt = f"<p>{escape(entry.prompt)}</p>" if entry.prompt else ""
    return f'<article class="card">{picture}<header>{kind}{verdict}</header>{prompt}<dl>{facts}</dl></article>'


def _box_svg(box: Box | None, name: str) -> str:
    if box is None:
        return ""
    left, top, right, bottom = (100 * side for side in box)
    shape = f'x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" height="{bottom - top:.2f}"'
    return f'<rect class="halo" {shape}/><rect class="box {name}" {shape}/>'


def _spread(lines: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """`count` of them at equal distances, the first and the last included."""
    count = min(count, len(lines))
    if count < 2:
        return list(lines[:count])
    return [lines[round(index * (len(lines) - 1) / (count - 1))] for index in range(count)]


def _box(value: Any) -> Box | None:
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(isinstance(v, int | float) for v in value):
        return None
    left, top, right, bottom = (min(max(float(side), 0.0), 1.0) for side in value)
    return (left, top, right, bottom) if left < right and top < bottom else None
