"""What can be asked about a scene, and the one right answer to each question."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from random import Random
from typing import Final

from .scenes import COLORS, COMPANIONS, PLACES, SHAPES, THINGS, Item, Scene, Thing

DESCRIBE: Final = (
    "Describe the image.",
    "What is in this image?",
    "Please describe this image in detail.",
    "What do you see?",
)
EXISTS: Final = ("Is there a {}?", "Is there a {} in the image?", "Do you see a {}?")
COUNT: Final = (
    "How many {}s are there?",
    "How many {}s do you see?",
    "How many {}s are in the image?",
)
WHERE: Final = ("Where is the {}?",)
WHAT: Final = ("What is at the {}?",)
NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six")


class Kind(Enum):
    """The kinds of question."""

    DESCRIBE = "describe"
    EXISTS = "exists"
    COUNT = "count"
    WHERE = "where"
    WHAT = "what"


@dataclass(frozen=True)
class Turn:
    """One question with its reference answer; `subjects` are the items the answer speaks of."""

    kind: Kind
    question: str
    answer: str
    subjects: tuple[Item, ...] = ()


def ask(scene: Scene, kind: Kind, rng: Random) -> Turn:
    """A question of this kind, with a random subject and wording."""
    match kind:
        case Kind.DESCRIBE:
            return Turn(kind, rng.choice(DESCRIBE), caption(scene), scene.items)
        case Kind.EXISTS:
            return ask_exists(scene, _thing_to_ask_about(scene, rng), rng)
        case Kind.COUNT:
            subject = rng.choice(("object", *SHAPES, *(f"{color} object" for color in COLORS)))
            return Turn(
                kind,
                rng.choice(COUNT).format(subject),
                f"{NUMBERS[count(scene, subject)].capitalize()}.",
            )
        case Kind.WHERE:
            item = rng.choice(scene.items)
            return Turn(
                kind, rng.choice(WHERE).format(item.thing), f"At the {PLACES[item.cell]}.", (item,)
            )
        case Kind.WHAT:
            return ask_what(scene, rng)


def ask_what(scene: Scene, rng: Random) -> Turn:
    """What is at a place that mostly holds something?"""
    cell = rng.choice(scene.items).cell if rng.random() < 0.7 else rng.randrange(len(PLACES))
    question = rng.choice(WHAT).format(PLACES[cell])
    found = tuple(item for item in scene.items if item.cell == cell)
    answer = f"A {found[0].thing}." if found else "Nothing."
    return Turn(Kind.WHAT, question, answer, found)


def ask_exists(scene: Scene, thing: Thing, rng: Random) -> Turn:
    """Is this thing in the scene?"""
    found = tuple(item for item in scene.items if item.thing == thing)
    question = rng.choice(EXISTS).format(thing)
    return Turn(Kind.EXISTS, question, "Yes." if found else "No.", found)


def caption(scene: Scene) -> str:
    """One sentence naming every thing: `There is a red circle, a blue square and a green cross.`"""
    phrases = [f"a {thing}" for thing in scene.things]
    listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    return f"There is {listed}."


def things_named(text: str) -> tuple[Thing, ...]:
    """Every colour-shape pair in a text, in order; the inverse of `caption`."""
    words = [word.strip(".,?!").lower() for word in text.split()]
    return tuple(
        Thing(color, shape)
        for color, shape in pairwise(words)
        if color in COLORS and shape in SHAPES
    )


def count(scene: Scene, subject: str) -> int:
    """How many things the subject (`object`, a shape, or `<color> object`) covers."""
    match subject.split():
        case ["object"]:
            return len(scene.items)
        case [color, "object"]:
            return sum(thing.color == color for thing in scene.things)
        case [shape]:
            return sum(thing.shape == shape for thing in scene.things)
        case _:
            raise ValueError(f"cannot count {subject!r}")


def _thing_to_ask_about(scene: Scene, rng: Random) -> Thing:
    """Half the time a thing that is there; otherwise an absent one, mostly easy to confuse."""
    present = set(scene.things)
    if rng.random() < 0.5:
        return rng.choice(scene.things)
    while True:
        near, roll = rng.choice(scene.things), rng.random()
        if roll < 0.3:
            absent = Thing(near.color, rng.choice(SHAPES))
        elif roll < 0.6:
            absent = Thing(rng.choice(tuple(COLORS)), near.shape)
        elif roll < 0.75:
            absent = rng.choice(tuple(COMPANIONS.values()))
        else:
            absent = rng.choice(THINGS)
        if absent not in present:
            return absent
