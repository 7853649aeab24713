"""Real photos with their boxes, before and after every image transform, as one picture to look at.

    python experiments/box_sheet.py ../shared/data boxes.png

Columns: the photo; crop, pad and squash; the views of tiles and of anyres side by side. A box that a crop cuts away
altogether is counted, not drawn.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mmexp.contracts import Box
from mmexp.encoder import ImageTransform
from mmexp.prompt import AnyRes, DynamicTiles, TiledTransform, load_image, to_view

SIDE = 168
COLOURS = ("red", "lime", "cyan", "yellow", "magenta", "orange", "white")


def boxed(image: Image.Image, boxes: list[Box | None]) -> Image.Image:
    """The picture with its boxes (shares) drawn in."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for number, box in enumerate(boxes):
        if box is not None:
            corners = [side * length for side, length in zip(box, (*image.size, *image.size), strict=True)]
            draw.rectangle(corners, outline=COLOURS[number % len(COLOURS)], width=2)
    return image


def strip(photo: Image.Image, boxes: list[Box], transforms: dict[str, Any]) -> tuple[Image.Image, int]:
    """One line of the sheet, and how many boxes the crop lost."""
    height = SIDE * photo.height // photo.width
    cells, lost = [boxed(photo.resize((SIDE, height)), list(boxes))], 0
    for name, transform in transforms.items():
        if isinstance(transform, ImageTransform):
            window = transform.window(photo.size)
            mapped = [to_view(box, window) for box in boxes]
            lost += sum(box is None for box in mapped) if name == "crop" else 0
            cells.append(boxed(transform.square(photo), mapped))
        else:
            values = transform(photo)
            for view, window in zip(values, transform.windows(photo.size), strict=True):
                cells.append(boxed(transform.view.restore(view), [to_view(box, window) for box in boxes]))
    line = Image.new("RGB", (len(cells) * (SIDE + 4), SIDE + 8), "grey")
    for number, cell in enumerate(cells):
        line.paste(cell.resize((SIDE, SIDE * cell.height // cell.width)), (number * (SIDE + 4), 0))
    return line, lost


def main(data: Path, out: Path, count: int = 8) -> None:
    """Writes the sheet of `count` photos, and prints how many of all boxes a crop loses."""
    raw = json.loads((data / "annotations/boxes.json").read_text())
    files = {row["id"]: row["file_name"] for row in json.loads((data / "annotations/images.json").read_text())}
    boxes: dict[int, list[Box]] = {}
    for row in raw["annotations"]:
        boxes.setdefault(row["image_id"], []).append(tuple(row["bbox_xyxy_norm"]))
    single = {fit: ImageTransform(size_px=SIDE, fit=fit) for fit in ("crop", "pad", "squash")}
    shared = {"view": single["squash"], "padded": single["pad"], "num_soft_tokens": 4, "soft_grid": (2, 2)}
    tiles = TiledTransform(tiling=DynamicTiles(max_tiles=6), **shared)
    transforms = {**single, "tiles": tiles, "anyres": TiledTransform(tiling=AnyRes(), **shared)}
    shown = sorted(boxes)[:: max(len(boxes) // count, 1)][:count]
    lines = [strip(load_image(data / files[each]), boxes[each], transforms) for each in shown]
    sheet = Image.new("RGB", (max(line.width for line, _ in lines), sum(line.height for line, _ in lines)))
    top = 0
    for line, _ in lines:
        sheet.paste(line, (0, top))
        top += line.height
    sheet.save(out)
    sizes = {each: load_image(data / files[each]).size for each in boxes}
    lost = sum(
        to_view(box, single["crop"].window(sizes[each])) is None for each, found in boxes.items() for box in found
    )
    print(f"{out}: {len(lines)} photos; a crop loses {lost} of {sum(map(len, boxes.values()))} boxes of all photos")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
