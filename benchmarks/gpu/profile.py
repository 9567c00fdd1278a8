"""Where the time of a step goes on the GPU: launches, kernels by time, gaps between them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu.serving import Bench, Stand, random_prompts, var_plan
from gpu.session import Figures, Session
from gpu.targets import GAP, LAUNCHES
from saccade_interventions.plan import Plan

STEPS = 6
WARM = 8
SHOWN = 16
"""Kernels by time that are kept."""

NAME = 90
"""Characters of a kernel's name."""

LAYER = 10
"""Launches of a layer that the target allows."""

Span = tuple[str, float, float]
"""What ran on the device: name, start and end in microseconds."""

DECODES = (("1x1024", "plain"), ("1x1024", "var"), ("32x1024", "plain"), ("32x1024", "var"))


def run_profile(session: Session, found: Figures, bench: Bench) -> None:
    """Decode steps, then prompts; plain and with VAR on every request."""
    for shape, kind in (("2x40", "plain"), ("2x40", "var")) if session.dry else DECODES:
        batch, context = map(int, shape.split("x"))
        one = partial(_decode, session, bench, batch, context, kind)
        cell = session.measure(found, f"decode {shape}, {kind}", 6, one)
        if cell is not None and shape == ("2x40" if session.dry else "1x1024") and kind == "plain":
            beyond = cell["launches"] - LAYER * bench.shape.layers
            session.reach(LAUNCHES.format(bench.name), beyond)
            session.reach(GAP.format(bench.name), cell["gap_us"])
    for kind in ("plain", "var"):
        context = 40 if session.dry else 1024
        one = partial(_prompt, session, bench, context, kind)
        session.measure(found, f"prompt 1x{context}, {kind}", 6, one)


def _decode(
    session: Session, bench: Bench, batch: int, context: int, kind: str, cell: Figures
) -> None:
    stand, model, _ = bench.open(session)
    plan = var_plan(model, context) if kind == "var" else None
    stand.fill(random_prompts(model, batch, context), [plan] * batch, 64 + WARM + STEPS)
    for _ in range(WARM):
        stand.step()
    spans = _profiled(session, partial(_steps, stand))
    stand.clear()
    cell |= described(spans, STEPS)
    session.say(_line(f"decode {batch}x{context} {kind}", cell))


def _steps(stand: Stand) -> None:
    for _ in range(STEPS):
        stand.step()


def _prompt(session: Session, bench: Bench, context: int, kind: str, cell: Figures) -> None:
    stand, model, _ = bench.open(session)
    plan: Plan | None = var_plan(model, context) if kind == "var" else None

    def fill(seed: int) -> None:
        stand.fill(random_prompts(model, 1, context, seed), [plan], 2)
        stand.clear()

    fill(1)
    fill(2)
    cell |= described(_profiled(session, partial(fill, 3)), 1)
    session.say(_line(f"prompt {context} {kind}", cell))


def _profiled(session: Session, call: partial[None]) -> list[Span]:
    """What ran on the device meanwhile; on a CPU the outermost operators stand for it."""
    kinds = [ProfilerActivity.CPU] if session.dry else [ProfilerActivity.CUDA]
    with profile(activities=kinds) as found:
        call()
        if not session.dry:
            torch.cuda.synchronize()
    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in found.events()
        if _counts(event, session.dry)
    ]


def _counts(event: Any, dry: bool) -> bool:
    if dry:
        return event.cpu_parent is None
    return bool(event.device_type == torch.autograd.DeviceType.CUDA)


def described(spans: Sequence[Span], steps: int) -> Figures:
    """Launches, time and the largest gap of a step, and the kernels that take most time.

    ``gap_us``: the median of the ``steps - 1`` longest times in which nothing ran: those between
    steps, if nothing within a step waits for longer.
    """
    assert spans, "nothing was launched"
    ordered = sorted(spans, key=lambda span: span[1])
    gaps, busy_until = [], ordered[0][1]
    for _, start, end in ordered:
        gaps.append(max(start - busy_until, 0.0))
        busy_until = max(busy_until, end)
    total = busy_until - ordered[0][1]
    by_name: dict[str, list[float]] = {}
    for name, start, end in ordered:
        by_name.setdefault(name[:NAME], []).append(end - start)
    most = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    longest = sorted(gaps, reverse=True)[: max(steps - 1, 1)]
    return {
        "launches": len(ordered) / steps,
        "span_ms": total / steps / 1e3,
        "busy_ms": (total - sum(gaps)) / steps / 1e3,
        "gap_us": statistics.median(longest),
        "waiting": sum(gaps) / total if total else 0.0,
        "kernels": {
            name: {"ms": sum(taken) / steps / 1e3, "launches": len(taken) / steps}
            for name, taken in most[:SHOWN]
        },
    }


def _line(name: str, cell: Figures) -> str:
    return (
        f"{name}: {cell['launches']:.0f} launches, {cell['span_ms']:.3f} ms, of which "
        f"{cell['busy_ms']:.3f} busy; gap between steps {cell['gap_us']:.1f} us"
    )
