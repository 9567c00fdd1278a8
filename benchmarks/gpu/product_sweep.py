"""Products of a decode step, the library's and the two Triton ones, over the rate of reading.

A model's figure is that of all products of a step, every layer's and the head's, each by what is
faster here: what serving can have once tuning.json has the entries. The invariant product's price
is its time over the library's, for decodes and for prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from gpu import backend
from gpu.accuracy import error
from gpu.ceilings import known_ceilings
from gpu.session import Figures, Session
from gpu.shapes import MODELS, ModelShape
from gpu.targets import WEIGHTS
from gpu.timing import L2_BYTES
from saccade_kernels.gpu.tuning import ProductConfig

BATCHES = (1, 8, 2, 4, 16)
GOAL_BATCHES = (1, 2, 4, 8)
PROMPTS = (1024, 4096)

FIRST = "first"
INVARIANT = "invariant"
LIBRARY = "library"
WAYS = (LIBRARY, FIRST, INVARIANT)
"""The library's, the one for few rows as a search begins with it, and the invariant one."""

WRONG = 0.004
"""Relative distance from float32 products of the same numbers; rounding to bf16 makes 0.0017."""


@dataclass(frozen=True)
class Weights:
    """One matrix of a step: its name, its shape, and how often a step multiplies by it."""

    name: str
    out: int
    inner: int
    times: int

    @property
    def bytes(self) -> int:
        return 2 * self.out * self.inner


def weights_of(shape: ModelShape) -> tuple[Weights, ...]:
    """Every matrix of a model's step, merged as they are served."""
    own, width, inner = shape.attention, shape.hidden, shape.intermediate
    attended, keys = own.heads * own.dim, own.kv_heads * own.dim
    return (
        Weights("qkv", attended + 2 * keys, width, shape.layers),
        Weights("output", width, attended, shape.layers),
        Weights("gates", 2 * inner, width, shape.layers),
        Weights("down", width, inner, shape.layers),
        Weights("head", shape.vocabulary, width, 1),
    )


def run_products(session: Session, found: Figures) -> None:
    """Every model: decodes of every batch, then prompts."""
    for name, (real, tiny) in MODELS.items():
        shape = tiny if session.dry else real
        for rows in (2,) if session.dry else BATCHES:
            session.measure(found, f"{name}, {rows} rows", 3, partial(_step, session, shape, rows))
    for name, (real, tiny) in MODELS.items():
        shape = tiny if session.dry else real
        for rows in (70,) if session.dry else PROMPTS:
            label = f"{name}, prompt of {rows}"
            session.measure(found, label, 2, partial(_prompt, session, shape, rows))


def calls(
    session: Session, one: Weights, rows: int, way: str | ProductConfig
) -> list[Callable[[], torch.Tensor]]:
    """Products with different weights, so that none is in a cache; the first is checked."""
    hidden, sets = operands(session, one, rows)
    wanted = torch.nn.functional.linear(hidden.float(), sets[0].float())
    made = [partial(_run, hidden, weight, way) for weight in sets]
    distance = error(made[0](), wanted)
    assert distance <= WRONG, f"{one.name} of {rows} rows, {way}: wrong by {distance}"
    if way == INVARIANT:
        last = _run(hidden[-1:].clone(), sets[0], way)
        assert torch.equal(made[0]()[-1:], last), f"{one.name}: a row's bits depend on the others"
    return made


def operands(session: Session, one: Weights, rows: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Rows, and weights in turns; the first three quarters of a gigabyte are enough of them."""
    count = 1 if session.dry else max(1, round(L2_BYTES / one.bytes))

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=session.device, dtype=torch.bfloat16)

    return draw(rows, one.inner), [draw(one.out, one.inner) for _ in range(count)]


def _run(hidden: torch.Tensor, weight: torch.Tensor, way: str | ProductConfig) -> torch.Tensor:
    if way == LIBRARY:
        return torch.nn.functional.linear(hidden, weight)
    if way == INVARIANT:
        return backend.linear(hidden, weight, None, None, True)
    return backend.product(hidden, weight, None if way == FIRST else way)


def _times(
    session: Session, shape: ModelShape, rows: int, cell: Figures, ways: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Seconds by matrix and way; what fails is not there."""
    found: dict[str, dict[str, float]] = {}
    for one in weights_of(shape):
        figures = cell.setdefault(one.name, {})
        for way in ways:
            seconds = session.time(figures, way, calls(session, one, rows, way))
            if seconds is not None:
                figures[way]["weights_tb_s"] = one.bytes / seconds / 1e12
                found.setdefault(one.name, {})[way] = seconds
    return found


def _step(session: Session, shape: ModelShape, rows: int, cell: Figures) -> None:
    times, all_weights = _times(session, shape, rows, cell, WAYS), weights_of(shape)
    moved = sum(one.times * one.bytes for one in all_weights)
    read = known_ceilings(session).read
    rates = {
        way: moved / sum(one.times * times[one.name][way] for one in all_weights)
        for way in WAYS
        if all(way in times[one.name] for one in all_weights)
    }
    best = sum(
        one.times * min(times[one.name][way] for way in (LIBRARY, FIRST) if way in times[one.name])
        for one in all_weights
    )
    rates["best of both"] = moved / best
    cell["step"] = {
        way: {"tb_s": rate / 1e12, "of_read": rate / read} for way, rate in rates.items()
    }
    if rows in GOAL_BATCHES:
        session.reach(WEIGHTS.format(_name(shape)), rates["best of both"] / read)
    if {LIBRARY, INVARIANT} <= rates.keys():
        cell["step"]["invariant_over_library"] = rates[LIBRARY] / rates[INVARIANT]
    session.say(
        f"products, {shape.name}, {rows} rows:", {w: f"{r / read:.2f}" for w, r in rates.items()}
    )


def _prompt(session: Session, shape: ModelShape, rows: int, cell: Figures) -> None:
    ways = (LIBRARY, INVARIANT)
    times = _times(session, shape, rows, cell, ways)
    layers = [one for one in weights_of(shape) if one.name != "head" and len(times[one.name]) == 2]
    total = {way: sum(one.times * times[one.name][way] for one in layers) for way in ways}
    cell["invariant_over_library"] = total[INVARIANT] / total[LIBRARY]
    text = f"{cell['invariant_over_library']:.2f}"
    session.line(
        f"invariant products of a prompt of {rows} over the library's, {_name(shape)}", text
    )


def _name(shape: ModelShape) -> str:
    return next(name for name, pair in MODELS.items() if shape in pair)
