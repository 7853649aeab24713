"""What the page's script is given: maps as bytes, each with the value of its strongest place."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import torch

from mmexp.errors import ConfigError
from mmexp.inspection.look import spread_evenly
from mmexp.inspection.place import inside, union
from mmexp.page import data_uri

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mmexp.inspection.look import Inside, View

ROOM = 2_000_000
"""Bytes of maps one by one (heads, queries) of one sample; means over them always fit in."""
_SIDE_PX = 480


def packed(maps: Tensor) -> dict[str, Any]:
    """float[..., M, N] as bytes: a map is the last two dimensions, 255 its strongest place, whose value is in `top`."""
    top = maps.float().flatten(-2).amax(-1)
    scaled = 255 * maps.float() / top.clamp(min=1e-12)[..., None, None]
    data = scaled.round().byte().contiguous().numpy().tobytes()
    return {
        "lead": list(maps.shape[:-2]),
        "size": list(maps.shape[-2:]),
        "data": base64.b64encode(data).decode("ascii"),
        "top": [float(f"{value:.3g}") for value in top.flatten().tolist()],
    }


def sample_data(found: Inside, layers: tuple[int, ...] | None) -> dict[str, Any]:
    """One sample as plain values.

    Args:
        found: What was found in it.
        layers: Those whose heads are shown one by one; None takes as many as there is room for.
    """
    maps = found.attention if found.over_picture is None else found.over_picture
    chosen = _layers(maps, layers)
    means = maps.mean(2)
    by_layer = _with_mean(means.transpose(0, 1), 0)  # [1 + layers, A, M, G]
    return {
        "id": found.id,
        "prompt": found.prompt,
        "answer": found.answer,
        "target": found.target,
        "tokens": list(found.tokens),
        "shares": [float(f"{value:.4f}") for value in found.attention.sum((-1, -2)).mean((1, 2)).tolist()],
        "layer_shares": _rounded(found.attention.sum((-1, -2)).mean((0, 2))),
        "grid": found.grid or [1, maps.shape[-1]],
        "placed": found.grid is not None,
        "pictures": [_picture(picture) for picture in found.pictures],
        "views": [_view(found, view) for view in found.views],
        "num_layers": maps.shape[1],
        "num_heads": maps.shape[2],
        "layers": packed(_with_mean(by_layer, 1)),
        "head_layers": chosen,
        "heads": packed(_with_mean(maps[:, chosen].permute(1, 2, 0, 3, 4), 2)) if chosen else None,
        "soft": _soft(found),
        "queries": _queries(found),
    }


def _with_mean(maps: Tensor, dim: int) -> Tensor:
    """The mean over a dimension in front of it."""
    return torch.cat([maps.mean(dim, keepdim=True), maps], dim)


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.4f}") for value in values.tolist()]


def _layers(maps: Tensor, wanted: tuple[int, ...] | None) -> list[int]:
    """The layers whose heads are shown. Raises ConfigError for one that there is not."""
    wrong = [layer for layer in wanted or () if not 0 <= layer < maps.shape[1]]
    if wrong:
        raise ConfigError(f"{wrong}", expected=f"0 to {maps.shape[1] - 1}, the LLM's layers", where="layers")
    if wanted is not None:
        return list(wanted)
    room = ROOM // max(1, maps[:, 0].numel())
    return spread_evenly(maps.shape[1], room) if room else []


def _picture(picture: Image.Image) -> dict[str, Any]:
    small = picture.copy()
    small.thumbnail((_SIDE_PX, _SIDE_PX))
    return {"src": data_uri(small), "width": picture.width, "height": picture.height}


def _view(found: Inside, view: View) -> dict[str, Any]:
    """Boxes of the picture and of the map in what is drawn, in shares of it, and the proportions of that."""
    frame, picture = union(view.window), found.pictures[view.picture]
    aspect = picture.width * (frame[2] - frame[0]) / (picture.height * (frame[3] - frame[1]))
    whole = inside((0.0, 0.0, 1.0, 1.0), frame)
    return {"picture": view.picture, "aspect": aspect, "whole": whole, "window": inside(view.window, frame)}


def _soft(found: Inside) -> dict[str, Any]:
    """Words of the soft tokens, and of the slots they stand in."""
    table: dict[str, int] = {}

    def index(rows: list[list[tuple[str, float]]]) -> list[list[list[float]]]:
        return [[[table.setdefault(text, len(table)), float(f"{v:.3g}")] for text, v in row] for row in rows]

    near, lens = index(found.near), {str(layer): index(rows) for layer, rows in found.lens.items()}
    return {"near": near, "lens": lens, "slot_of": found.slot_of, "words": list(table)}


def _queries(found: Inside) -> dict[str, Any] | None:
    """Maps [1 + layers, 1 + heads, N, M, G] of the queries, the means in front; heads only where there is room."""
    if found.queries is None:
        return None
    maps = found.queries.permute(1, 2, 3, 0, 4)
    heads = maps.numel() <= ROOM
    means = _with_mean(maps.mean(1, keepdim=True), 0)
    full = _with_mean(_with_mean(maps, 0), 1) if heads else means
    prefix = None if found.prefix is None else float(found.prefix.mean())
    return {"maps": packed(full), "num_layers": maps.shape[0], "heads": heads, "prefix": prefix}
