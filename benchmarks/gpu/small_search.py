"""Search for launch configurations of a layer's small kernels: few enough to try them all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from gpu import backend
from gpu.layer_sweep import SWEEP, Step, check, steps
from gpu.session import Figures, Session
from gpu.shapes import LLAVA, QWEN, TINY_LLAVA, TINY_QWEN
from saccade_kernels.gpu.tuning import SmallConfig, small_config

KERNELS = {"add_norm": "norm", "norm_rope_store": "rope", "gate": "gate"}
"""Names in tuning.json; scores of sinks are launched as norms."""

VALUES = (4, 8, 16, 32)
BLOCKS = (512, 1024, 2048, 4096)
WARPS = (8, 16)
GAIN = 0.99
"""A move must save one percent; less is noise."""


def run_small(session: Session, found: Figures) -> list[dict[str, Any]]:
    """Entries for tuning.json, of halves. Decodes and prompts count alike."""
    rows = (3,) if session.dry else SWEEP
    shapes = (TINY_LLAVA, TINY_QWEN) if session.dry else (LLAVA, QWEN)
    made = [step for shape in shapes for count in rows for step in steps(session, shape, count)]
    entries = []
    for op, kernel in KERNELS.items():
        own = [step for step in made if step.name == op]
        base = small_config(kernel, torch.bfloat16)
        best, least = base, _cost(session, found, own, base)
        for config in _moves(base, session.dry):
            cost = _cost(session, found, own, config)
            if cost < GAIN * least:
                best, least = config, cost
        key = {"kernel": kernel, "bytes": 2}
        entries.append({"kernel": "small", "key": key, "config": asdict(best)})
        session.say(f"{kernel}: {asdict(best)}")
    return entries


def _moves(base: SmallConfig, dry: bool) -> Iterator[SmallConfig]:
    for block in BLOCKS if base.block else (0,):
        for values in VALUES:
            for most_warps in (base.most_warps,) if block else WARPS:
                changed = {"values": values, "most_warps": most_warps, "block": block}
                if not dry or values == VALUES[0]:
                    yield replace(base, **changed)


def _cost(session: Session, found: Figures, made: list[Step], config: SmallConfig) -> float:
    """Geometric mean of the seconds of these steps; endless if one of them fails."""
    total, label = 0.0, json_name(config)
    for index, step in enumerate(made):
        run = partial(getattr(backend, step.name), config=config)
        check(run, step)
        cell = found.setdefault(step.name, {}).setdefault(str(index), {})
        seconds = session.time(cell, label, [partial(run, *one) for one in step.arguments])
        total += math.inf if seconds is None else math.log(seconds)
    return math.exp(total / len(made))


def json_name(config: SmallConfig) -> str:
    """A key of the figures."""
    return f"values {config.values}, warps {config.most_warps}, block {config.block}"
