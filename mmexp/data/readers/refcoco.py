"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg as flat rows, or as the published pickle."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mmexp.contracts import Region, Sample, Text, Turn
from mmexp.data.files import SteadyFile
from mmexp.data.readers.parts import exchange, is_key, others, picture
from mmexp.data.readers.prompts import named_image
from mmexp.data.readers.regions import as_share
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.data.sources import Row, as_file, iterate_rows, iterate_under
from mmexp.errors import DataError

_LARGEST_BYTES = 1 << 30
"""Largest pickle that is read."""


@dataclass(frozen=True, kw_only=True)
class RefCocoConfig(RowsConfig):
    """Flat rows of `img_id`, `sents`, `bbox`, `height`, `width`; every sentence becomes a sample.

    The box is in `meta.box` as shares of the picture, and stands in the turns as a region, which the template writes.
    `path` may also be the published `refs(...).p`; then `instances` names COCO's `instances.json`, and no code runs
    from the pickle.

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
    instances: str | None = None
    """COCO's `instances.json`, for boxes and picture sizes of a pickle; null for flat rows."""
    split: str | None = None
    """Only rows of this split (train, val, testA, testB, test); null for all."""

    def __post_init__(self) -> None:
        """Raises DataError for an instruction without its place."""
        for key, mark in (("locate_prompt", "{phrase}"), ("describe_prompt", "{box}")):
            if getattr(self, key).count(mark) != 1:
                raise DataError(f"{getattr(self, key)!r}", expected=f"one {mark}", where=f"data.{key}")

    def read(self, file: SteadyFile) -> Iterator[Row]:
        pickled = is_pickle(file)
        if self.instances and not pickled:
            found = "data.instances is set, and the file is no pickle of refs"
            raise DataError(found, expected="a refs(...).p", where=file.path, fix="data.instances=null for flat rows")
        for row in flat_refs(file, self.instances) if pickled else iterate_rows(file):
            given = row.value.get("split") if isinstance(row.value, dict) else None
            if self.split is not None and given is not None and given != self.split:
                continue
            sentences = row.value.get("sents") if isinstance(row.value, dict) else None
            if not isinstance(sentences, list) or not sentences:
                sentences = [sentences]
            for place, sentence in enumerate(sentences):
                value = row.value
                if isinstance(value, dict):
                    value = {**others(value, "sents"), "phrase": sentence, "sentence": place}
                yield row._replace(value=value)

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        if self.split is not None and row.get("split") is None:
            fix = "data.split=null"
            raise DataError("no `split` in the row", expected=f"it, because of data.split={self.split}", fix=fix)
        if row.get("lacks"):
            raise DataError(row["lacks"], expected="its picture and annotation in the instances file",
                            fix="use the instances.json of these refs")  # fmt: skip
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


def flat_refs(file: SteadyFile, instances: str | None) -> Iterator[Row]:
    """The rows of the published `refs(...).p`, made flat with COCO's `instances.json`.

    The pickle may hold lists, dictionaries, texts and numbers only: anything that would import is refused, so that no
    code runs from it. `Row.line` is the place in the list. A ref whose picture or box is not there has `lacks`.

    Args:
        file: The pickle.
        instances: COCO's instances file.

    Raises:
        DataError: no instances file, a file is broken, or the pickle asks for code.
    """
    if not instances:
        raise DataError(
            "a pickle of refs without boxes and picture sizes",
            expected="COCO's instances.json too",
            where=file.path,
            fix="data=refcoco data.path=REFS data.instances=instances.json",
        )
    source = as_file(instances, "the instances file (data.instances)")
    boxes = {key: entry.get("bbox") for key, entry in _by_id(source, "annotations")}
    sizes = {key: {side: entry.get(side) for side in ("height", "width")} for key, entry in _by_id(source, "images")}
    for place, ref in enumerate(_load_refs(file)):
        names = {key: ref.get(key) for key in ("ref_id", "image_id", "ann_id", "split")}
        sentences = ref.get("sentences")
        if isinstance(sentences, list):
            sentences = [one.get("sent") if isinstance(one, dict) else one for one in sentences]
        value = {**names, "img_id": names["image_id"], "sents": sentences}
        if odd := next((key for key in names if not is_key(names[key])), None):
            value["lacks"] = f"`{odd}` of a ref is {repr(names[odd])[:60]}"
        elif missing := next(
            (k for k, there in (("image_id", sizes), ("ann_id", boxes)) if names[k] not in there), None
        ):
            value["lacks"] = f"ref {names['ref_id']!r}: no {missing} {names[missing]!r} in {instances}"
        if "lacks" not in value:
            value |= {"bbox": boxes[names["ann_id"]], **sizes[names["image_id"]]}
        yield Row(place + 1, 0, 0, value)


def _by_id(file: SteadyFile, key: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    for row in iterate_under(file, key):
        if not isinstance(row.value, dict) or not is_key(row.value.get("id")):
            found, where = f"an entry of `{key}` is {repr(row.value)[:80]}", f"{file.path}:{row.line}"
            raise DataError(found, expected="an object with `id`", where=where)
        yield row.value["id"], row.value


def is_pickle(file: SteadyFile) -> bool:
    """Whether the file begins as pickles do."""
    head = file.read(0, min(file.size, 3))
    return head[:1] == b"\x80" or head == b"(lp"


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to {pid!r} outside")


def _load_refs(file: SteadyFile) -> list[dict[str, Any]]:
    import io

    if file.size > _LARGEST_BYTES:
        raise DataError(f"{file.size:,} bytes", expected=f"a pickle of at most {_LARGEST_BYTES:,}", where=file.path)
    try:
        refs = _PlainUnpickler(io.BytesIO(file.read(0, file.size)), encoding="utf-8").load()
    except Exception as error:  # a broken pickle can raise anything
        found = f"the pickle cannot be read safely: {error}"
        raise DataError(found, expected="lists, dictionaries, texts and numbers", where=file.path) from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise DataError(f"a {type(refs).__name__}", expected="a list of refs", where=file.path)
    return refs
