"""Pictures with transparent pixels: what is seen through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


def flatten(image: Image.Image, backdrop: Colour | None = None) -> Image.Image:
    """The picture as RGB.

    Args:
        image: With an alpha channel, a palette or colour that is transparent, or opaque.
        backdrop: What lies under transparent pixels. None shows the colour that the file has there, which nobody sees
            in a viewer (often black): Pillow's `convert("RGB")`, as in the reference recipes. 16-bit grey has no
            transparency here.
    """
    from PIL import Image

    if backdrop is not None and image.has_transparency_data:
        under = Image.new("RGBA", image.size, (*backdrop, 255))
        return Image.alpha_composite(under, image.convert("RGBA")).convert("RGB")
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # the hidden colour stays, and Pillow need not warn that it does
    return image.convert("RGB")
