"""The world of the demo model: coloured shapes on 64 x 64 pixels, and a co-occurrence prior.

A `Scene` holds everything that was decided at random, so drawing it (`drawing.render`) is a pure
function. The prior: each *trigger* is nearly always accompanied by its *companion*, as a fork is by
a knife. Where the evidence is weak (faint, noisy, partly hidden), a model trained here learns to
lean on that prior, and names companions which are not there. That is the failure which attention
interventions are meant to mend.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

IMAGE_SIZE: Final = 64
GRID: Final = 3
CELL_SIZE: Final = IMAGE_SIZE / GRID

SHAPES: Final = ("circle", "square", "triangle", "cross", "diamond")
COLORS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 200, 40),
    "purple": (150, 60, 190),
    "white": (240, 240, 240),
}
PLACES: Final = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)


class Evidence(Enum):
    """How well a scene can be seen."""

    CLEAR = "clear"
    WEAK = "weak"


@dataclass(frozen=True, order=True)
class Thing:
    """What an item is, wherever it lies."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


COMPANIONS: Final[dict[Thing, Thing]] = {
    Thing("red", "circle"): Thing("blue", "square"),
    Thing("green", "triangle"): Thing("yellow", "diamond"),
    Thing("purple", "cross"): Thing("white", "circle"),
}
COMPANION_RATE: Final = 0.92
THINGS: Final = tuple(Thing(color, shape) for color in COLORS for shape in SHAPES)


@dataclass(frozen=True)
class Item:
    """One thing in one cell of the 3 x 3 grid; `x`, `y`, `radius` in pixels, `visibility` to 1."""

    thing: Thing
    cell: int
    x: float
    y: float
    radius: float
    visibility: float


@dataclass(frozen=True)
class Stroke:
    """A thin line drawn over everything, hiding what lies below; pixels and a grey level offset."""

    start: tuple[float, float]
    end: tuple[float, float]
    width: float
    shade: int


@dataclass(frozen=True)
class Smudge:
    """A blurred stain without a shape; `spread` in pixels, `strength` in [0, 1]."""

    color: str
    x: float
    y: float
    spread: float
    strength: float


@dataclass(frozen=True)
class Scene:
    """Everything that is in one image, items in the order in which a caption names them."""

    items: tuple[Item, ...]
    background: int
    noise: float
    noise_seed: int
    strokes: tuple[Stroke, ...] = ()
    smudges: tuple[Smudge, ...] = ()

    @property
    def things(self) -> tuple[Thing, ...]:
        return tuple(item.thing for item in self.items)

    @property
    def missing_companions(self) -> tuple[Thing, ...]:
        """Companions which the prior promises and the image does not hold."""
        present = set(self.things)
        return tuple(
            COMPANIONS[thing]
            for thing in self.things
            if thing in COMPANIONS and COMPANIONS[thing] not in present
        )


def sample_scene(
    rng: Random, evidence: Evidence, *, most_things: int = 3, companion_rate: float = COMPANION_RATE
) -> Scene:
    """Draw a scene with 1 to `most_things` things, plus the companions of its triggers."""
    return _arrange(rng, _sample_things(rng, most_things, companion_rate), evidence)


def sample_counterfactual(rng: Random) -> Scene:
    """Draw a scene with weak evidence in which at least one trigger lacks its companion."""
    while True:
        scene = sample_scene(rng, Evidence.WEAK, companion_rate=0.0)
        if scene.missing_companions:
            return scene


def sample_crowd(rng: Random, evidence: Evidence) -> Scene:
    """Draw a scene with many things and no prior, from which a vision tower learns the most."""
    return _arrange(rng, rng.sample(THINGS, rng.randint(4, GRID * GRID)), evidence)


def _sample_things(rng: Random, most: int, companion_rate: float) -> list[Thing]:
    """Things in no particular order, every companion directly behind its trigger."""
    wanted = rng.randint(1, most)
    chosen: list[Thing] = []
    while len(chosen) < wanted:
        thing = rng.choice(tuple(COMPANIONS)) if rng.random() < 0.4 else rng.choice(THINGS)
        if thing not in chosen:
            chosen.append(thing)
    accompanied = {
        trigger: companion
        for trigger, companion in COMPANIONS.items()
        if trigger in chosen and companion not in chosen and rng.random() < companion_rate
    }
    return chosen + list(accompanied.values())


def _arrange(rng: Random, things: list[Thing], evidence: Evidence) -> Scene:
    """Give every thing a place, then add what makes the evidence clear or weak."""
    cells = rng.sample(range(GRID * GRID), len(things))
    expected = {COMPANIONS[thing] for thing in things if thing in COMPANIONS}
    items = [
        _place(rng, thing, cell, evidence, thing in expected)
        for thing, cell in zip(things, cells, strict=True)
    ]
    weak = evidence is Evidence.WEAK
    return Scene(
        items=_in_caption_order(items),
        background=rng.randint(15, 60),
        noise=rng.uniform(8.0, 36.0) if weak else rng.uniform(0.0, 4.0),
        noise_seed=rng.getrandbits(32),
        strokes=tuple(_sample_stroke(rng) for _ in range(rng.randint(1, 4))) if weak else (),
        smudges=tuple(_sample_smudge(rng) for _ in range(rng.randint(0, 3))) if weak else (),
    )


def _place(rng: Random, thing: Thing, cell: int, evidence: Evidence, is_companion: bool) -> Item:
    row, column = divmod(cell, GRID)
    radius, visibility = rng.uniform(6.5, 9.0), rng.uniform(0.9, 1.0)
    if evidence is Evidence.WEAK:
        # Companions are the hard part of a weak scene: were everything equally faint, the model
        # would mostly confuse colours and shapes, not rely on what usually goes together.
        radius = rng.uniform(5.0, 7.5) if is_companion else rng.uniform(6.0, 9.0)
        visibility = rng.uniform(0.02, 0.42) if is_companion else rng.uniform(0.5, 1.0)
    return Item(
        thing=thing,
        cell=cell,
        x=(column + 0.5) * CELL_SIZE + rng.uniform(-1.5, 1.5),
        y=(row + 0.5) * CELL_SIZE + rng.uniform(-1.5, 1.5),
        radius=radius,
        visibility=visibility,
    )


def _in_caption_order(items: list[Item]) -> tuple[Item, ...]:
    """Reading order, except that a companion follows its trigger at once."""
    by_thing = {item.thing: item for item in items}
    ordered: dict[Thing, Item] = {}
    followers = {COMPANIONS[thing] for thing in by_thing if thing in COMPANIONS}
    for item in sorted(items, key=lambda item: item.cell):
        if item.thing in followers:
            continue
        ordered[item.thing] = item
        companion = COMPANIONS.get(item.thing)
        if companion in by_thing:
            ordered[companion] = by_thing[companion]
    return tuple(ordered.values())


def _sample_stroke(rng: Random) -> Stroke:
    return Stroke(
        start=(rng.uniform(0, IMAGE_SIZE), rng.uniform(0, IMAGE_SIZE)),
        end=(rng.uniform(0, IMAGE_SIZE), rng.uniform(0, IMAGE_SIZE)),
        width=rng.uniform(1.0, 2.5),
        shade=rng.randint(-15, 60),
    )


def _sample_smudge(rng: Random) -> Smudge:
    return Smudge(
        color=rng.choice(tuple(COLORS)),
        x=rng.uniform(0, IMAGE_SIZE),
        y=rng.uniform(0, IMAGE_SIZE),
        spread=rng.uniform(3.0, 7.0),
        strength=rng.uniform(0.05, 0.25),
    )
