"""Conversations about a scene: what a user says and what the assistant answers, free of any file format."""

from __future__ import annotations

from collections import Counter
from random import Random

from mmexp.shapes.scenes import Scene, Thing
from mmexp.shapes.tasks import QUESTIONS, SUFFIX, Turn, ask, box_text, plural, refer

CAPTION_PROMPTS = (
    "Provide a one-sentence caption for the provided image.",
    "Describe the image in one sentence.",
)
DETAIL_PROMPTS = ("Describe the image in detail.", "Give a detailed description of the picture.")
FIND_PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}"
LIST_PROMPT = "List all objects with their bounding boxes."
NAME_PROMPT = "Please provide a short description for this region: {}"

LISTED = 0.3
"""Share of the conversations about boxes that begin with a list of all."""

_FRAMES = ("{}.", "There is {}.", "A picture of {}.", "The image shows {}.", "{} on a # background.")
_NUMBERS = ("", "a", "two", "three", "four")


def listing(scene: Scene) -> str:
    """All things from left to right in one phrase: `two small red circles and a large blue letter A`."""
    phrases = []
    for (full, noun), number in Counter((thing.full, thing.noun) for thing in scene.things).items():
        words = full if number == 1 else full.removesuffix(noun) + plural(noun)
        phrases.append(f"{_NUMBERS[number]} {words}")
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def captions(scene: Scene) -> list[str]:
    """One sentence about the scene in every phrasing there is."""
    phrase = listing(scene)
    texts = (frame.format(phrase).replace("#", scene.background) for frame in _FRAMES)
    return [text[0].upper() + text[1:] for text in texts]


def caption(scene: Scene, rng: Random) -> str:
    """One sentence about the scene, in one of several phrasings."""
    return rng.choice(captions(scene))


def located(scene: Scene) -> str:
    """A caption that also says where: every thing from left to right with its box."""
    return "; ".join(f"{thing.full} {box_text(thing)}" for thing in scene.things)


def caption_turns(scene: Scene, rng: Random) -> list[Turn]:
    """An instruction to write a caption, and the caption."""
    return [(rng.choice(CAPTION_PROMPTS), caption(scene, rng))]


def question_turns(scene: Scene, rng: Random, turns: int = 10) -> list[Turn]:
    """Several different short questions of mixed types; the first says how to answer."""
    asked: dict[str, str] = {}
    for _ in range(turns * 3):
        question = ask(scene, rng.choice(tuple(QUESTIONS)), rng)
        if question and len(asked) < turns:
            asked.setdefault(question.text, question.answer)
    return [(text + SUFFIX * (number == 0), answer) for number, (text, answer) in enumerate(asked.items())]


def box_turns(scene: Scene, rng: Random, turns: int = 6) -> list[Turn]:
    """From words to a box and from a box to words; at times all boxes at once."""
    result: list[Turn] = []
    for thing in rng.sample(scene.things, len(scene.things)):
        phrase = refer(scene, thing, rng)
        if phrase:
            result.append((FIND_PROMPT.format(phrase), box_text(thing)))
        if not phrase or rng.random() < 0.5:
            result.append((NAME_PROMPT.format(box_text(thing)), thing.full))
    rng.shuffle(result)
    return [(LIST_PROMPT, located(scene))] * (rng.random() < LISTED) + result[:turns]


def detail_turns(scene: Scene, rng: Random) -> list[Turn]:
    """An instruction to describe everything, and the description."""
    number = len(scene.things)
    sentences = [f"The image shows {_some(number, 'object')} on a {scene.background} background."]
    sentences += [f"{_at(thing)} there is a {thing.full}." for thing in scene.things]
    if number > 1:
        first, last = scene.things[0], scene.things[-1]
        sentences.append(f"The {first.full} is the leftmost object and the {last.full} is the rightmost one.")
    return [(rng.choice(DETAIL_PROMPTS), " ".join(sentences))]


def chat_turns(scene: Scene, rng: Random, turns: int = 3) -> list[Turn]:
    """A conversation in whole sentences, as people hold it who do not ask for a single word."""
    number = len(scene.things)
    be = "is" if number == 1 else "are"
    pool: list[tuple[tuple[str, ...], str]] = [
        (("What can you see in this picture?", "What do you see?"), f"I can see {listing(scene)}."),
        (("Can you tell me how many objects there are?", "How many objects are there?"),
         f"There {be} {_some(number, 'object')}."),
        (("What is the colour of the background?",), f"The background is {scene.background}."),
    ]  # fmt: skip
    for thing in scene.unique("noun"):
        asked = (f"Could you tell me the colour of the {thing.noun}?", f"What colour is the {thing.noun}?")
        pool.append((asked, f"The {thing.noun} is {thing.colour}."))
        pool.append(((f"Where is the {thing.noun}?",), f"The {thing.noun} is {_at(thing)[0].lower()}{_at(thing)[1:]}."))
    for thing in scene.unique("colour"):
        if thing.kind == "shape":
            pool.append(((f"What shape is the {thing.colour} object?",), f"It is a {thing.noun}."))
    for thing in scene.unique("kind"):
        if thing.kind != "shape":
            asked = ("Can you read the sign?",) if _signs(scene) == 1 else (f"Can you read the {thing.kind}?",)
            pool.append((asked, f"It is the {thing.noun}."))
    return [(rng.choice(asked), answer) for asked, answer in rng.sample(pool, min(turns, len(pool)))]


def _signs(scene: Scene) -> int:
    return sum(thing.kind != "shape" for thing in scene.things)


def _some(number: int, noun: str) -> str:
    return f"{number} {noun if number == 1 else plural(noun)}"


def _at(thing: Thing) -> str:
    """`In the top left`, `On the right`, `At the bottom`"""
    sides = {"left": "On", "right": "On", "top": "At", "bottom": "At"}
    return f"{sides.get(thing.place, 'In')} the {thing.place}"
