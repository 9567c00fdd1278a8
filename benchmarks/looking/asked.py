"""What is asked of scenes whose boxes are known, and what counts as an effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from saccade_interventions.image_views import ImageView
from saccade_interventions.regions import cells, within
from saccade_server.demo.questions import Kind, things_named
from saccade_server.demo.scenes import CELL_SIZE, GRID, IMAGE_SIZE, Item, Scene
from saccade_server.demo.splits import Example, Split, companion_examples, examples
from saccade_server.evaluation.images import data_url

Box = list[float]
GRID_OF_TOKENS = ImageView(0, (0, 64), 8, 8, (IMAGE_SIZE, IMAGE_SIZE))
"""Of the demo model."""

Judge = Callable[[str], dict[str, float]]
"""From an answer to what is counted of it, by name."""


@dataclass(frozen=True)
class Asked:
    """One question about one image, with the boxes to look at."""

    image: str
    question: str
    boxes: list[Box]
    judge: Judge

    def gaze(self, heat: list[list[list[float]]]) -> float:
        """The share of attention on the boxes' tokens, in the mean over rows of a heat map."""
        rows = np.array(heat).reshape(len(heat), -1)
        inside = [within(GRID_OF_TOKENS, _fractions(box)) for box in self.boxes]
        chosen = {
            int(cell)
            for areas, box in zip(inside, self.boxes, strict=True)
            for cell in cells([GRID_OF_TOKENS], [areas], _area(box), 0.5)
        }
        return float(rows[:, sorted(chosen)].sum(1).mean())

    def interventions(self, fields: dict[str, Any] | None) -> list[dict[str, Any]]:
        if fields is None:
            return []
        regions = [{"image": 0, "box": box} for box in self.boxes]
        return [{"method": "look_at", "regions": regions, **fields}]


def _fractions(box: Box) -> tuple[float, float, float, float]:
    left, top, right, bottom = (side / IMAGE_SIZE for side in box)
    return left, top, right, bottom


def _area(box: Box) -> float:
    left, top, right, bottom = _fractions(box)
    return (right - left) * (bottom - top)


def box_of(item: Item) -> Box:
    """The square around an item, within the image."""
    sides = item.x - item.radius, item.y - item.radius, item.x + item.radius, item.y + item.radius
    return [round(min(max(side, 0.0), IMAGE_SIZE), 2) for side in sides]


def empty_box(scene: Scene, random: Random) -> Box:
    """A cell of the world's grid in which there is nothing, less a margin."""
    free = sorted(set(range(GRID * GRID)) - {item.cell for item in scene.items})
    row, column = divmod(random.choice(free), GRID)
    left, top = column * CELL_SIZE + 3, row * CELL_SIZE + 3
    return [left, top, left + CELL_SIZE - 6, top + CELL_SIZE - 6]


def described(scenes: int, empty: bool) -> Iterator[Asked]:
    """Clear scenes of several things, and one of these but the first (or a place with nothing)."""
    found = 0
    for number, example in enumerate(examples(Split.CLEAR, Kind.DESCRIBE, 10 * scenes)):
        random, scene = Random(f"look-{number}"), example.scene
        if len(scene.items) < 2:
            continue
        target = random.choice(scene.items[1:])
        box = empty_box(scene, random) if empty else box_of(target)
        yield Asked(data_url(example.image), example.question, [box], _names(scene, target))
        found += 1
        if found == scenes:
            return


def _names(scene: Scene, target: Item) -> Judge:
    others = {item.thing for item in scene.items if item is not target}

    def judge(text: str) -> dict[str, float]:
        named = things_named(text)
        return {
            "first": float(named[:1] == (target.thing,)),
            "named": float(target.thing in named),
            "alone": float(set(named) == {target.thing}),
            "others": len(others & set(named)) / len(others),
            "absent": float(bool(set(named) - others - {target.thing})),
        }

    return judge


def companions(split: Split, scenes: int, empty: bool) -> Iterator[Asked]:
    """Is the companion there? Ordinary scenes that hold it, faintly, or counterfactual ones.

    The box is the companion's, or, where it is not there or ``empty`` says so, that of a place with
    nothing.
    """
    found = 0
    for number, example in enumerate(companion_examples(split, 2 * scenes)):
        boxes = [box_of(item) for item in _companions(example)]
        if (split is Split.ORDINARY) != bool(boxes):
            continue
        if empty or not boxes:
            boxes = [empty_box(example.scene, Random(f"empty-{number}"))]
        yield Asked(data_url(example.image), example.question, boxes, _says(example.answer))
        found += 1
        if found == scenes:
            return


def _companions(example: Example) -> list[Item]:
    """The item that is asked about, if it is there."""
    (thing,) = things_named(example.question)
    return [item for item in example.scene.items if item.thing == thing]


def _says(right: str) -> Judge:
    def judge(text: str) -> dict[str, float]:
        return {"right": float(text.strip() == right)}

    return judge


def captions(split: Split, scenes: int) -> Iterator[Asked]:
    """Whole captions, with the boxes of all that is there."""
    for example in examples(split, Kind.DESCRIBE, scenes):
        there = set(example.scene.things)

        def judge(text: str, there: set[Any] = there) -> dict[str, float]:
            named = set(things_named(text))
            return {"exact": float(named == there), "absent": float(bool(named - there))}

        boxes = [box_of(item) for item in example.scene.items]
        yield Asked(data_url(example.image), example.question, boxes, judge)
