"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg as flat rows, and the way there from the published pickle."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmexp.contracts import Region, Sample, Text, Turn
from mmexp.data.files import SteadyFile
from mmexp.data.readers.parts import as_share, exchange, others, picture
from mmexp.data.readers.prompts import named_image
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.data.sources import Row, as_file, iterate_rows, iterate_under
from mmexp.errors import DataError


@dataclass(frozen=True, kw_only=True)
class RefCocoConfig(RowsConfig):
    """Flat rows of `img_id`, `sents`, `bbox`, `height`, `width`; every sentence becomes a sample.

    The box is in `meta.box` as shares of the picture, and stands in the turns as a region, which the template writes.

    Source: Vision-CAIR/MiniGPT-4 @ d94738a7 (layout); LLaVA-1.5 for the instructions.
    """

    packed: ClassVar[bool] = True

    task: Literal["locate", "describe"] = "locate"
    """`locate` asks for the box of a phrase, `describe` for the phrase of a box."""
    locate_prompt: str = "Please provide the bounding box coordinate of the region this sentence describes: {phrase}."
    describe_prompt: str = "Please provide a short description for this region: {box}."
    image_name: str = "COCO_train2014_{img_id:012d}.jpg"
    """File of a picture under the image folder; an `image` in the row goes before it."""
    box_form: Literal["xywh", "xyxy"] = "xywh"
    """Pixels of `bbox`: corner and size, or two corners."""

    def __post_init__(self) -> None:
        """Raises DataError for an instruction without its place."""
        for key, mark in (("locate_prompt", "{phrase}"), ("describe_prompt", "{box}")):
            if getattr(self, key).count(mark) != 1:
                raise DataError(f"{getattr(self, key)!r}", expected=f"one {mark}", where=f"data.{key}")

    def read(self, file: SteadyFile) -> Iterator[Row]:
        for row in iterate_rows(file):
            sentences = row.value.get("sents") if isinstance(row.value, dict) else None
            if not isinstance(sentences, list) or not sentences:
                sentences = [sentences]
            for place, sentence in enumerate(sentences):
                value = row.value
                if isinstance(value, dict):
                    value = {**others(value, "sents"), "phrase": sentence, "sentence": place}
                yield row._replace(value=value)

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        if not isinstance(row.get("phrase"), str) or not row["phrase"].strip():
            raise DataError(f"a sentence is {row.get('phrase')!r}", expected="`sents`, a list of texts")
        phrase = row["phrase"].strip()
        box = as_share(row.get("bbox"), row.get("width"), row.get("height"), self.box_form)
        image = picture(row.get("image") or named_image(self.image_name, row, "img_id"))
        if self.task == "locate":
            answer = (Region(boxes=(box,)),)
            turns = exchange(self.locate_prompt.replace("{phrase}", phrase), answer, image)
        else:
            before, after = self.describe_prompt.split("{box}")
            asked = (image, Text(text="\n" + before), Region(boxes=(box,)), *([Text(text=after)] if after else []))
            turns = (Turn(role="user", parts=asked), Turn(role="assistant", parts=(Text(text=phrase),)))
        given = row.get("ref_id", row.get("img_id"))
        meta = {**others(row, "bbox", "phrase"), "box": list(box), "phrase": phrase}
        name = row_id({"id": given}, number) + f"-{row.get('sentence', 0)}"
        return Sample(id=name, turns=turns, meta=meta)


def convert_refs(refs: str, instances: str, out: str, split: str | None = None, limit_bytes: int = 1 << 30) -> int:
    """Writes the published `refs(...).p` with COCO's `instances.json` as flat rows, and says how many.

    The pickle may hold lists, dictionaries, texts and numbers only: anything that would import is refused, so that no
    code runs from it.

    Args:
        refs: The pickle.
        instances: COCO's instances file, for boxes and picture sizes.
        out: JSON file to write.
        split: Only this split; None for all.
        limit_bytes: Largest pickle that is read.

    Raises:
        DataError: a file is missing or broken, the pickle asks for code, or an annotation is missing.
    """
    source = as_file(instances, "the instances file")
    boxes = {row.value["id"]: row.value["bbox"] for row in iterate_under(source, "annotations")}
    images = {row.value["id"]: row.value for row in iterate_under(source, "images")}
    rows = []
    for ref in _load_refs(as_file(refs, "the refs file"), limit_bytes):
        if split is not None and ref.get("split") != split:
            continue
        try:
            image, box = images[ref["image_id"]], boxes[ref["ann_id"]]
            sentences = [sentence["sent"] for sentence in ref["sentences"]]
            rows.append(
                {"ref_id": ref["ref_id"], "img_id": ref["image_id"], "sents": sentences, "bbox": box,
                 "height": image["height"], "width": image["width"], "split": ref["split"]}
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            found = f"ref {ref.get('ref_id')!r}: {error} is not there"
            raise DataError(found, expected=f"its picture and annotation in {instances}", where=refs) from error
    if not rows:
        raise DataError(f"no ref of split {split!r}", expected="train, val, testA, testB or test", where=refs)
    Path(out).write_text(json.dumps(rows), encoding="utf-8")
    return len(rows)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to {pid!r} outside")


def _load_refs(file: SteadyFile, limit_bytes: int) -> list[dict[str, Any]]:
    import io

    if file.size > limit_bytes:
        raise DataError(f"{file.size:,} bytes", expected=f"a pickle of at most {limit_bytes:,}", where=file.path)
    try:
        refs = _PlainUnpickler(io.BytesIO(file.read(0, file.size)), encoding="utf-8").load()
    except Exception as error:  # a broken pickle can raise anything
        found = f"the pickle cannot be read safely: {error}"
        raise DataError(found, expected="lists, dictionaries, texts and numbers", where=file.path) from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise DataError(f"a {type(refs).__name__}", expected="a list of refs", where=file.path)
    return refs
