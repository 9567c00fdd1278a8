"""The small kernels between a layer's products, beside plain PyTorch and a copy of their bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gpu import backend
from gpu.accuracy import error
from gpu.ceilings import known_ceilings
from gpu.session import Figures, Session
from gpu.shapes import LLAVA, QWEN, TINY_LLAVA, TINY_QWEN, ModelShape
from gpu.targets import SMALL_BANDWIDTH, SMALL_FASTER
from gpu.timing import L2_BYTES
from saccade_kernels import layers
from saccade_kernels.batch import PAGE
from saccade_kernels.layers import Heads, RMSNorm

SWEEP = (8192, 1, 32, 8, 1024)
"""Rows of a step: the largest prompts, then decodes."""
LARGE = 8192
"""Rows from which the bound is memory; a few rows take what a launch takes."""
HALF = 2  # bytes of a value

WRONG = 0.004
"""Relative distance from plain layers in float64; three roundings to bf16 make 0.003."""


@dataclass(frozen=True)
class Step:
    """One kernel on one set of inputs: its name in both backends, and the bytes that it moves."""

    name: str
    arguments: list[tuple[Any, ...]]  # taken in turns
    moved: int


def run_layers(session: Session, found: Figures) -> None:
    """Every number of rows, every kernel."""
    for rows in (70, 3) if session.dry else SWEEP:
        for tiny, real in ((TINY_LLAVA, LLAVA), (TINY_QWEN, QWEN)):
            shape = tiny if session.dry else real
            name = f"{rows}x{shape.hidden}"
            session.measure(found, name, 4, partial(_one_size, session, shape, real, rows))


def _one_size(
    session: Session, shape: ModelShape, real: ModelShape, rows: int, cell: Figures
) -> None:
    for step in steps(session, shape, rows):
        _one(session, cell.setdefault(step.name, {}), step)
    _judge(session, cell, real, rows)
    told = {name: one["kernel"].get("us") for name, one in cell.items()}
    session.say(f"small kernels {rows}x{shape.hidden}: {told} us")


def steps(session: Session, shape: ModelShape, rows: int) -> list[Step]:
    """All kernels on inputs of one size."""
    device, width, inner = session.device, shape.hidden, shape.intermediate
    own = shape.attention
    merged = (own.heads + 2 * own.kv_heads) * own.dim

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device).to(torch.bfloat16)

    def sets(bytes_: int) -> range:
        return range(1 if session.dry else max(1, min(64, round(L2_BYTES / bytes_))))

    norm = RMSNorm(draw(width), 1e-5)
    positions = torch.arange(rows, device=device)[None]
    frequencies = 1e4 ** -(torch.arange(0, own.dim, 2, device=device) / own.dim)
    rotating = (positions, frequencies, None, 1.0, torch.bfloat16)
    rotation = layers.rotation(*rotating)
    pages = -(-rows // PAGE) + 1
    caches = tuple(draw(pages, PAGE, own.kv_heads, own.dim) for _ in range(2))
    slots = PAGE + torch.arange(rows, device=device)
    heads = Heads(own.heads, own.kv_heads, own.dim)
    added, headed = 4 * rows * width * HALF, 2 * rows * merged * HALF
    gated = 3 * rows * inner * HALF
    return [
        Step(
            "add_norm", [(draw(rows, width), draw(rows, width), norm) for _ in sets(added)], added
        ),
        Step(
            "norm_rope_store",
            [(draw(rows, merged), heads, rotation, *caches, slots) for _ in sets(headed)],
            headed,
        ),
        Step("gate", [(draw(rows, 2 * inner), "silu") for _ in sets(gated)], gated),
        Step("rotation", [rotating], 2 * rows * own.dim * HALF),
    ]


def _one(session: Session, found: Figures, step: Step) -> None:
    kernel, plain = getattr(backend, step.name), getattr(layers, step.name)
    found["error"] = check(kernel, step)
    seconds = session.time(found, "kernel", [_call(kernel, one) for one in step.arguments])
    before = session.time(found, "plain", [_call(plain, one) for one in step.arguments])
    if seconds is not None:
        found["kernel"]["of_copy"] = step.moved / seconds / known_ceilings(session).copy
    if seconds is not None and before is not None:
        found["over_plain"] = seconds / before


def _judge(session: Session, sizes: Figures, shape: ModelShape, rows: int) -> None:
    of_layer = [one for name, one in sizes.items() if name != "rotation"]
    if rows >= LARGE or session.dry:
        for one in of_layer:
            if "of_copy" in one["kernel"]:
                session.reach(SMALL_BANDWIDTH.format(shape.hidden), one["kernel"]["of_copy"])
    if rows == 1 or session.dry:
        for one in of_layer:
            if "over_plain" in one:
                session.reach(SMALL_FASTER.format(shape.hidden), one["over_plain"])


def _call(function: Callable[..., object], arguments: tuple[Any, ...]) -> Callable[[], object]:
    return lambda: function(*arguments)


def check(kernel: Callable[..., Any], step: Step) -> float:
    """The worst relative error of what a kernel returns."""
    given = step.arguments[0]
    wanted = _tensors(getattr(layers, step.name)(*(_widened(one) for one in given)))
    distances = [error(*pair) for pair in zip(_tensors(kernel(*given)), wanted, strict=True)]
    assert max(distances) <= WRONG, f"{step.name} is wrong by {distances}"
    return max(distances)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.dtype == torch.bfloat16 else value
    if isinstance(value, RMSNorm):
        return RMSNorm(value.weight.double(), value.epsilon, value.plus_one)
    if isinstance(value, layers.Rotation):
        return layers.Rotation(value.cos.double(), value.sin.double())
    return torch.float64 if value == torch.bfloat16 else value


def _tensors(found: Any) -> tuple[torch.Tensor, ...]:
    if isinstance(found, layers.Rotation):
        return found.cos, found.sin
    return found if isinstance(found, tuple) else (found,)
