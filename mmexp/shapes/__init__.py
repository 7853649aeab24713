"""The embedded world: small pictures of coloured shapes and signs, everything one can ask about them, and two
small pretrained parts (`parts/`) that were trained on it apart from each other.

It writes ordinary LLaVA JSON and PNG files, so that a run on it passes through the ordinary reader.
"""

from mmexp.shapes.scenes import HELD_OUT, Scene, Thing, draw_scene
from mmexp.shapes.world import WorldConfig

__all__ = ["HELD_OUT", "Scene", "Thing", "WorldConfig", "draw_scene"]
