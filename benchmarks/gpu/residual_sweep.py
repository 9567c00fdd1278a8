"""Edits of the residual stream against a copy of as many bytes, read and written as theirs are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from gpu import backend
from gpu.accuracy import error
from gpu.ceilings import known_ceilings
from gpu.problems import write_row
from gpu.session import Figures, Session
from gpu.shapes import LLAVA, QWEN, TINY_LLAVA, TINY_QWEN, ModelShape
from gpu.targets import RESIDUALS
from gpu.timing import L2_BYTES
from saccade_kernels import residual_tables
from saccade_kernels.residual import (
    RESIDUAL_EDITS,
    ResidualFlag,
    ResidualProgram,
    SiteKind,
    site_of,
)
from saccade_kernels.residual_tables import ResidualTables

SWEEP = (8192, 1024, 128, 32, 8, 1)
"""Rows of a step: prompts, then decodes."""
LARGE = 8192
"""Rows from which the bound is memory; a few rows take what a launch takes."""

CHAIN = 4
"""Edits that one of the programs chains."""

SITE = site_of(SiteKind.RESIDUAL, 1)
PROGRAMS = ("all edited", f"{CHAIN} edits in a chain", f"rank {RESIDUAL_EDITS}", "diagonal")
"""What table rows 1, 2, .. do at that site."""

WRONG = 0.004
"""Relative distance from the float64 reference; rounding to bf16 alone makes 0.0017."""


def run_residuals(session: Session, found: Figures) -> None:
    """Every number of rows: none, some and all of them edited, and edits in a chain."""
    shapes = ((TINY_LLAVA, LLAVA), (TINY_QWEN, QWEN))
    for rows in (70, 3) if session.dry else SWEEP:
        for tiny, real in shapes:
            shape = tiny if session.dry else real
            name = f"{rows}x{shape.hidden}"
            goal = RESIDUALS.format(real.hidden) if rows >= LARGE or session.dry else None
            one = partial(_one_size, session, shape=shape, rows=rows, goal=goal)
            session.measure(found, name, 2, one)


def _one_size(
    session: Session, found: Figures, shape: ModelShape, rows: int, goal: str | None
) -> None:
    device, width = session.device, shape.hidden
    tables = _tables(width, device)
    moved = 2 * rows * width * 2
    count = 1 if session.dry else max(1, min(64, round(L2_BYTES / moved)))
    sets = [torch.randn(rows, width, device=device).to(torch.bfloat16) for _ in range(count)]
    every = torch.arange(rows, device=device, dtype=torch.int32)
    variants = {
        "no row edited": 0 * every,
        "a quarter edited": (every % 4 == 0).int(),
        **{label: 0 * every + row for row, label in enumerate(PROGRAMS, start=1)},
    }
    ceilings = known_ceilings(session)
    for label, index in variants.items():
        distance = _check(sets[0], index, tables)
        seconds = session.time(found, label, [_call(hidden, index, tables) for hidden in sets])
        found[label]["error"] = distance
        if seconds is not None:
            found[label] |= {
                "tb_s": moved / seconds / 1e12,
                "of_copy": moved / seconds / ceilings.copy,
                "of_best": moved / seconds / ceilings.memory,
            }
    if goal and "of_copy" in found["all edited"]:
        session.reach(goal, found["all edited"]["of_copy"])
    session.say(f"residuals {rows}x{width}:", {k: v.get("us") for k, v in found.items()}, "us")


def _tables(width: int, device: torch.device) -> ResidualTables:
    """A row for each of :data:`PROGRAMS`.

    The first adds a vector; the chain adds one, removes one, clips one and keeps the norm.
    """
    tables = ResidualTables.allocate(len(PROGRAMS) + 1, 1, width, RESIDUAL_EDITS + 1, device)
    unit = torch.nn.functional.normalize(torch.randn(RESIDUAL_EDITS, width), dim=1)
    tables.bank[1:].copy_(unit)
    clipped = (1.0, 0.0, -0.5, 0.5)
    chain = (
        ((1.0, 1.5, -np.inf, np.inf), ResidualFlag.RELATIVE),
        ((0.0, 0.0, -np.inf, np.inf), ResidualFlag.NONE),
        (clipped, ResidualFlag.NONE),
        ((1.0, 2.0, -np.inf, np.inf), ResidualFlag.SIGNED | ResidualFlag.KEEP_NORM),
    )
    rank = [
        (clipped, ResidualFlag.JOINED if at else ResidualFlag.NONE) for at in range(RESIDUAL_EDITS)
    ]
    diagonal = (((1.5, 0.0, -np.inf, np.inf), ResidualFlag.DIAGONAL),)
    for row, edits in enumerate((chain[:1], chain, rank, diagonal), start=1):
        program = ResidualProgram.identity(1)
        for slot, (numbers, flags) in enumerate(edits, start=1):
            program.append(SITE, slot, numbers, flags)
        write_row(tables, row, program)
    return tables


def _call(
    hidden: torch.Tensor, index: torch.Tensor, tables: ResidualTables
) -> Callable[[], torch.Tensor]:
    return lambda: backend.edit_residual(hidden, index, tables, SITE)


def _check(hidden: torch.Tensor, index: torch.Tensor, tables: ResidualTables) -> float:
    """Relative error; rows without edits must keep their bits."""
    got = backend.edit_residual(hidden, index, tables, SITE)
    distance = error(got, residual_tables.edit_residual(hidden.double(), index, tables, SITE))
    assert distance <= WRONG, f"residual edits are wrong by {distance}"
    assert torch.equal(got[index == 0], hidden[index == 0]), "a plain row has changed"
    return distance
