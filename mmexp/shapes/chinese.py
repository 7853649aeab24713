"""Captions in Chinese, for mixtures of two languages."""

from __future__ import annotations

from collections import Counter
from random import Random

from mmexp.shapes.scenes import Scene, Thing

CHINESE_PROMPT = "Generate the caption in Chinese:"

WORDS = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色", "orange": "橙色",
    "white": "白色", "grey": "灰色", "small": "小", "large": "大", "letter": "字母", "digit": "数字",
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星形", "cross": "十字", "ring": "圆环",
}  # fmt: skip
_NUMBERS = ("", "一个", "两个", "三个", "四个")
_FRAMES = ("{}。", "图中有{}。", "{}在{background}的背景上。")


def chinese_caption(scene: Scene, rng: Random) -> str:
    """One sentence about the scene, all things from left to right, in one of several phrasings."""
    counted = Counter(_name(thing) for thing in scene.things)
    phrases = [_NUMBERS[number] + name for name, number in counted.items()]
    listed = "和".join(["、".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
    return rng.choice(_FRAMES).format(listed, background=WORDS[scene.background])


def _name(thing: Thing) -> str:
    noun = WORDS[thing.name] if thing.kind == "shape" else WORDS[thing.kind] + thing.name
    return WORDS[thing.colour] + WORDS[thing.size] + noun
