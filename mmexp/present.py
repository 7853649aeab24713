"""What the commands show: the plan, what trains, samples as the model sees them, and the last lines of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.contracts import IGNORE, Item
from mmexp.engine.log import console
from mmexp.report import Piece, PreviewEntry, plan_table, results_table

if TYPE_CHECKING:
    from mmexp.assemble import Experiment
    from mmexp.engine import RunDir
    from mmexp.evaluation.runner import Results
    from mmexp.model import PromptPlan
    from mmexp.tuning import TrainedPart


def preview_items(exp: Experiment, count: int) -> tuple[list[dict[str, Any]], list[PreviewEntry]]:
    """Evenly spaced samples of the training data: as plain JSON values, and as pictures with text."""
    dataset, plan = exp.checked.parts["data"].build(), exp.prompt
    lines, entries = [], []
    for index in (number * len(dataset) // count for number in range(min(count, len(dataset)))):
        item = plan.processor.encode(dataset[index])
        runs = [vars(run) for run in item.runs]
        ids, labels = item.input_ids.tolist(), item.labels.tolist()
        lines.append({"id": item.id, "input_ids": ids, "labels": labels, "media": runs})
        transforms: Any = plan.transforms  # image transforms can also undo themselves
        images = [transforms[m].restore(value) for m, values in item.media.items() for value in values]
        slots = sum(run.length for run in item.runs)
        counts = f"{len(ids)} tokens, {slots} slots, {item.num_supervised} supervised"
        counts += f", {item.num_dropped_turns} turns dropped" if item.num_dropped_turns else ""
        counts += f", {item.num_cut_tokens} answer tokens cut" if item.num_cut_tokens else ""
        entries.append(PreviewEntry(id=item.id, images=images, pieces=_pieces(item, plan), counts=counts))
    return lines, entries


def _pieces(item: Item, plan: PromptPlan) -> list[Piece]:
    """The item's tokens as text again, cut where supervision or slots begin and end."""
    slot_of = {run.start + step: (index, run) for index, run in enumerate(item.runs) for step in range(run.length)}
    keys = [
        (slot_of[at][0] if at in slot_of else None, bool(label != IGNORE))
        for at, label in enumerate(item.labels.tolist())
    ]
    pieces, ids = [], item.input_ids.tolist()
    for (run, supervised), group in groupby(range(len(ids)), key=keys.__getitem__):
        members = list(group)
        if run is not None:
            pieces.append(Piece(slot=item.runs[run].modality, length=len(members)))
        else:
            text = plan.tokenizer.decode([ids[at] for at in members], skip_special_tokens=False)
            pieces.append(Piece(text=text, supervised=supervised))
    return pieces


def show_plan(exp: Experiment, run: RunDir | None = None) -> None:
    """The plan as a table: parts, shapes, tokens, data and where it goes."""
    console.print(plan_table(plan_rows(exp, run), title=f"{exp.checked.spine.name} / {exp.checked.spine.stage.name}"))


def plan_rows(exp: Experiment, run: RunDir | None = None) -> list[dict[str, str]]:
    """What the plan table shows."""
    spine, plan = exp.checked.spine, exp.plan
    width = f" x {plan.spec.width}" if plan.spec.width else ""  # without an LLM soft tokens and ids go nowhere
    rows = []
    for modality, branch in plan.inputs.items():
        grid = " x ".join(map(str, branch.spec.grid))
        rows.append(
            {
                "part": "encoder",
                "what": _title(exp, "encoder"),
                "shape": f"{modality} to {grid} patches x {branch.spec.width}",
            }
        )
        each = " a view" if plan.tiling else ""
        shape = f"{branch.num_soft_tokens} soft tokens{each}{width}"
        rows.append({"part": "connector", "what": _title(exp, "connector"), "shape": shape})
    rows.append(
        {"part": "llm", "what": _title(exp, "llm"), "shape": f"{plan.spec.vocab_size} tokens{width or ', no LLM'}"}
    )
    rows.append(
        {
            "part": "template",
            "what": plan.template.name,
            "shape": f"at most {plan.max_length_tokens} tokens, images {plan.image_rule}",
        }
    )
    rows.append({"part": "data", "what": _title(exp, "data"), "shape": f"batches of {spine.stage.batch_size}"})
    rows.append({"part": "start", "what": _start(spine.stage.init_from), "shape": ""})
    if exp.checked.parts.get("evaluation"):
        kind, asked = spine.stage.kind, exp.benchmarks
        others = ", ".join(name for name in exp.checked.parts["evaluation"] if name not in asked)
        left_out = f"not for stages of kind {kind}: {others}" if others else ""
        rows.append({"part": "evaluation", "what": ", ".join(asked) or "nothing", "shape": left_out})
    if run is not None:
        rows.append({"part": "run", "what": str(run.path), "shape": ""})
    return rows


def _start(paths: str | Sequence[str] | None) -> str:
    return (paths if isinstance(paths, str) else ", then ".join(paths or ())) or "base weights"


def show_mixture(exp: Experiment) -> None:
    """The parts of a mixture, whose files are opened for it; nothing where the data are no mixture."""
    from mmexp.data import MixtureConfig
    from mmexp.present_data import mixture_rows

    data = exp.checked.parts["data"]
    if not isinstance(data, MixtureConfig):
        return
    rows, errors = mixture_rows(data)
    console.print(plan_table(rows, title=f"mixture, {data.mixing}"))
    for error in errors:
        console.print(str(error), soft_wrap=True, style="yellow", markup=False)


def show_trained(table: Sequence[TrainedPart]) -> None:
    """What trains, with how many parameters and which learning rate."""
    rows = [
        {
            "part": part.name,
            "policy": part.policy,
            "parameters": f"{part.num_parameters:,}",
            "trained": f"{part.num_trained:,}",
            "learning rate": f"{part.lr:g}" if part.num_trained else "-",
        }
        for part in table
    ]
    console.print(plan_table(rows, title="what trains"))


def finish(run: RunDir, results: Results, page: Path) -> None:
    """The last lines of a run: figures, report, and the command to talk to it."""
    if results:
        console.print(results_table(results))
    manifest = run.manifest()
    minutes = manifest.get("wall_s", 0) / 60
    console.print(f"{minutes:.1f} minutes, peak memory {manifest.get('peak_memory_mb', 0):.0f} MB")
    console.print(f"report  {page}", soft_wrap=True)
    if run.manifest().get("derived", {}).get("llm_width") == 0:
        return  # nobody to talk to
    console.print(f"chat    python -m mmexp.chat run={run.path}{_example_image(run)}", soft_wrap=True)


def _title(exp: Experiment, name: str) -> str:
    node = exp.checked.plain[name]
    if node.get("parts"):
        return f"mixture ({node.get('mixing', 'natural')}) of {', '.join(node['parts'])}"
    return str(node.get("path") or str(node.get("_target_", "")).rsplit(".", 1)[-1])


def _example_image(run: RunDir) -> str:
    """` image=FILE` for a picture the run was evaluated on."""
    for file in sorted((run.path / "predictions").glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            image = json.loads(lines.readline() or "{}").get("image")
        if image:
            return f" image={image}"
    return ""
