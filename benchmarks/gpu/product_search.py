"""Search for launch configurations of products: few enough to try them all.

A product of few rows has an entry for each shape of weights and most rows: the fastest
configuration that was tried, or none, with which the library multiplies. The invariant product has
one for all shapes that are wide, and one for the others: decodes and a prompt count alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from gpu.product_sweep import INVARIANT, LIBRARY, Weights, calls, weights_of
from gpu.session import Figures, Session
from gpu.shapes import LLAVA, QWEN, TINY_LLAVA, TINY_QWEN
from saccade_kernels.gpu.products import first_config
from saccade_kernels.gpu.tuning import WIDE, ProductConfig, invariant_config

FEW = ((1, 8), (16,))
"""Batches that one entry serves; it is chosen by all of them."""

ALL = (1, 8, 1024)

FEW_MOVES = (
    (16, 16, 256, 4, 5),
    (16, 16, 256, 2, 5),
    (16, 16, 512, 4, 4),
    (16, 32, 256, 4, 4),
    (16, 32, 128, 4, 6),
    (16, 64, 128, 4, 5),
    (16, 64, 256, 4, 3),
)
INVARIANT_MOVES = (
    (64, 32, 128, 4, 6),
    (64, 32, 256, 4, 3),
    (64, 64, 128, 4, 4),
    (64, 64, 64, 4, 5),
    (64, 128, 64, 4, 4),
    (128, 64, 64, 4, 4),
    (128, 128, 64, 8, 4),
)
"""Fields of ProductConfig in their order."""

GAIN = 0.99
"""A configuration must save one percent; less is noise."""


def run_few(session: Session, found: Figures) -> list[dict[str, Any]]:
    """Entries of products of few rows, in bfloat16, of every shape of weights."""
    entries = []
    for one in _matrices(session):
        moves = {first_config(one.out, torch.bfloat16), *_configs(FEW_MOVES, session.dry)}
        for batches in FEW:
            least = _cost(session, found, [one], batches, LIBRARY)
            best = None
            for config in sorted(moves, key=str):
                cost = _cost(session, found, [one], batches, config)
                if cost < GAIN * least:
                    best, least = config, cost
            key = {"out": one.out, "in": one.inner, "rows": max(batches), "bytes": 2}
            config_of = None if best is None else asdict(best)
            entries.append({"kernel": "product", "key": key, "config": config_of})
            session.say(f"{key}: {config_of}")
    return entries


def run_invariant(session: Session, found: Figures) -> list[dict[str, Any]]:
    """Entries of the invariant product, in bfloat16."""
    entries = []
    for wide in (False, True):
        own = [one for one in _matrices(session) if (one.out >= WIDE) == wide and one.times > 1]
        best = invariant_config(WIDE if wide else 1, torch.bfloat16)
        least = _cost(session, found, own, ALL, best)
        for config in _configs(INVARIANT_MOVES, session.dry):
            cost = _cost(session, found, own, ALL, config)
            if cost < GAIN * least:
                best, least = config, cost
        key = {"wide": wide, "bytes": 2}
        entries.append({"kernel": INVARIANT, "key": key, "config": asdict(best)})
        session.say(f"{key}: {asdict(best)}")
    return entries


def _matrices(session: Session) -> list[Weights]:
    shapes = (TINY_LLAVA, TINY_QWEN) if session.dry else (LLAVA, QWEN)
    return [one for shape in shapes for one in weights_of(shape)]


def _configs(moves: Sequence[tuple[int, ...]], dry: bool) -> list[ProductConfig]:
    return [ProductConfig(*move) for move in (moves[:1] if dry else moves)]


def _cost(
    session: Session,
    found: Figures,
    matrices: Sequence[Weights],
    batches: Sequence[int],
    way: str | ProductConfig,
) -> float:
    """Geometric mean of the seconds; endless if one of them fails or is wrong."""
    total = 0.0
    for one in matrices:
        for rows in batches:
            cell = found.setdefault(f"{one.out}x{one.inner}", {}).setdefault(f"{rows} rows", {})
            seconds = _seconds(session, cell, one, 3 if session.dry else rows, way)
            total += math.inf if seconds is None else math.log(seconds)
    return math.exp(total / max(len(matrices) * len(batches), 1))


def _seconds(
    session: Session, cell: Figures, one: Weights, rows: int, way: str | ProductConfig
) -> float | None:
    label = way if isinstance(way, str) else ", ".join(f"{k} {v}" for k, v in asdict(way).items())
    try:
        made = calls(session, one, rows, way)
    except Exception as failure:  # too much shared memory, or a form the compiler refuses
        cell[label] = {"failure": repr(failure)[:200]}
        session.check_gpu()
        return None
    return session.time(cell, label, made)
