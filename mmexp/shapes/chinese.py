"""Captions in Chinese, for mixtures of two languages."""

from __future__ import annotations

from collections import Counter
from random import Random

from mmexp.shapes.scenes import Scene, Thing

CHINESE_PROMPT = "Generate the caption in Chinese:"

WORDS = {
    "red": "红", "green": "绿", "blue": "蓝", "yellow": "黄", "purple": "紫", "orange": "橙", "white": "白",
    "grey": "灰", "small": "小", "large": "大", "circle": "圆", "square": "方块", "triangle": "三角", "star": "星",
    "cross": "十字", "ring": "环", "letter": "字母", "digit": "数字",
}  # fmt: skip
"""Short ones: the small language parts write Chinese in bytes, three a character."""
_NUMBERS = ("", "", "两个", "三个", "四个")
_FRAMES = ("{}。", "图中有{}。", "{background}底上有{}。")


def chinese_caption(scene: Scene, rng: Random) -> str:
    """One sentence about the scene, all things from left to right, in one of several phrasings."""
    counted = Counter(_name(thing) for thing in scene.things)
    phrases = [_NUMBERS[number] + name for name, number in counted.items()]
    listed = "和".join(["、".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
    return rng.choice(_FRAMES).format(listed, background=WORDS[scene.background])


def _name(thing: Thing) -> str:
    noun = WORDS[thing.name] if thing.kind == "shape" else WORDS[thing.kind] + thing.name
    return WORDS[thing.size] + WORDS[thing.colour] + noun
