"""Held-out scenes, deterministic by split, seed and index; no seed occurs in training.

`ordinary` and `counterfactual` are drawn with the same weak evidence; they differ only in whether
the prior holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from random import Random

from PIL import Image

from .drawing import render
from .questions import Kind, Turn, ask, ask_exists
from .scenes import COMPANIONS, Evidence, Scene, sample_counterfactual, sample_scene


class Split(Enum):
    """Held-out sets; tune strengths on `VALIDATION`, report on the others."""

    CLEAR = "clear"
    ORDINARY = "ordinary"
    COUNTERFACTUAL = "counterfactual"
    VALIDATION = "validation"


@dataclass(frozen=True)
class Example:
    """One image with one question and its reference answer."""

    split: Split
    kind: Kind
    image: Image.Image
    question: str
    answer: str
    scene: Scene


def sample_split(split: Split, count: int, *, seed: int = 0) -> tuple[Scene, ...]:
    """The first `count` scenes of a split; a larger count only appends."""
    return tuple(
        _sample(split, index, Random(f"{split.value}-{seed}-{index}")) for index in range(count)
    )


def examples(split: Split, kind: Kind, count: int, *, seed: int = 0) -> Iterator[Example]:
    """One question of this kind on each of the first `count` scenes."""
    for index, scene in enumerate(sample_split(split, count, seed=seed)):
        yield _example(
            split, scene, ask(scene, kind, _question_rng(split, kind.value, seed, index))
        )


def companion_examples(split: Split, count: int, *, seed: int = 0) -> Iterator[Example]:
    """Ask for a trigger's companion, in each of the first `count` scenes which hold a trigger."""
    index = found = 0
    while found < count:
        scene = _sample(split, index, Random(f"{split.value}-{seed}-{index}"))
        rng = _question_rng(split, "companion", seed, index)
        index += 1
        promised = scene.missing_companions or tuple(
            COMPANIONS[t] for t in scene.things if t in COMPANIONS
        )
        if promised:
            found += 1
            yield _example(split, scene, ask_exists(scene, rng.choice(promised), rng))


def _sample(split: Split, index: int, rng: Random) -> Scene:
    match split:
        case Split.CLEAR:
            return sample_scene(rng, Evidence.CLEAR)
        case Split.ORDINARY:
            return sample_scene(rng, Evidence.WEAK)
        case Split.COUNTERFACTUAL:
            return sample_counterfactual(rng)
        case Split.VALIDATION:
            return sample_counterfactual(rng) if index % 2 else sample_scene(rng, Evidence.WEAK)


def _question_rng(split: Split, purpose: str, seed: int, index: int) -> Random:
    """Not the scene's own generator, so that new kinds of question never change the scenes."""
    return Random(f"{split.value}-{seed}-{index}-{purpose}")


def _example(split: Split, scene: Scene, turn: Turn) -> Example:
    return Example(split, turn.kind, render(scene), turn.question, turn.answer, scene)
