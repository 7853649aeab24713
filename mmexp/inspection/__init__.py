"""A finished model looked into: attention of answers over pictures, soft tokens as words, maps of queries.

The page is data and a script; everything that is computed is plain PyTorch and can be called from a notebook.
"""

from mmexp.inspection.draw import draw_attention, overlay, write_pictures
from mmexp.inspection.look import Inside, View, look_inside, require_visible
from mmexp.inspection.page import page_html
from mmexp.inspection.samples import choose, own_sample, rows

__all__ = [
    "Inside",
    "View",
    "choose",
    "draw_attention",
    "look_inside",
    "overlay",
    "own_sample",
    "page_html",
    "require_visible",
    "rows",
    "write_pictures",
]
