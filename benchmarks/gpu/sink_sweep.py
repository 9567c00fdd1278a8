"""Sink detection of one layer: rows scored and tags settled, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from gpu import backend
from gpu.accuracy import NOT_FINITE
from gpu.session import Figures, Session
from gpu.shapes import LLAVA, QWEN
from gpu.targets import SINKS
from saccade_kernels import sinks
from saccade_kernels.controls import CLASSES
from saccade_kernels.sinks import SinkTags

SWEEP = ((1, 1024), (8, 1024), (1, 4096), (32, 1))
"""Sequences, and rows of each in this step; single rows are generated ones."""
DIMS = (1415, 2533)
SLOTS = 65536
WRONG = 1e-5


def run_sinks(session: Session, found: Figures) -> None:
    """Prompts and decodes of both widths."""
    for sequences, rows in ((2, 40), (3, 1)) if session.dry else SWEEP:
        for shape in (LLAVA, QWEN):
            goal = SINKS.format(shape.hidden) if rows == 1024 or session.dry else None
            one = partial(_one_size, session, width=shape.hidden, step=(sequences, rows), goal=goal)
            session.measure(found, f"{sequences}x{rows} width {shape.hidden}", 3, one)


def _one_size(
    session: Session, found: Figures, width: int, step: tuple[int, int], goal: str | None
) -> None:
    device, (sequences, rows) = session.device, step
    count = sequences * rows
    hidden = torch.randn(count, width, device=device).to(torch.bfloat16)
    hidden[::7, DIMS[0]] = 400.0
    index = torch.arange(count, device=device)
    slots = torch.randperm(SLOTS, device=device)[:count]
    tags = SinkTags(
        slots=slots,
        position=index % rows,
        starts=torch.arange(sequences + 1, device=device) * rows,
        base=index % 3,
        threshold=torch.full((sequences,), 20.0, device=device),
        tag_row=torch.arange(sequences, device=device) + 1,
        remap=torch.arange(CLASSES, device=device).flip(0).repeat(sequences, 1),
        require=torch.full((sequences,), CLASSES - 1, device=device),
        whole=torch.ones(sequences, dtype=torch.uint8, device=device),
    )
    dims = torch.tensor(DIMS, device=device)
    results = []

    def work(store: Callable[..., None], settle: Callable[..., None]) -> Callable[[], None]:
        scores = torch.zeros(SLOTS, device=device)
        table = torch.zeros(sequences + 1, rows, dtype=torch.uint8, device=device)
        met = torch.zeros(sequences + 1, dtype=torch.uint8, device=device)
        results.append((scores, table, met))

        def run() -> None:
            store(hidden, index, dims, slots, scores)
            settle(tags, scores, table, met)

        return run

    kernels = session.time(found, "kernels", [work(*backend.sink_ops(device))])
    plain = session.time(found, "plain", [work(sinks.store_scores, sinks.settle_tags)])
    (scores, *settled), (wanted, *exact) = results
    distance = float(((scores - wanted).norm() / wanted.norm()).nan_to_num(NOT_FINITE))
    assert distance <= WRONG, f"sink scores are wrong by {distance}"
    assert all(map(torch.equal, settled, exact)), "tags are settled otherwise"
    found["error"] = distance
    if kernels is not None and plain is not None:
        found["over_plain"] = kernels / plain
        if goal:
            session.reach(goal, kernels / plain)
        session.say(f"sinks {sequences}x{rows}, width {width}: {kernels / plain:.2f} of plain")
