"""Masks of grammars on rows of logits, against a copy of the same rows."""

from __future__ import annotations

from functools import partial

import torch

from gpu import backend
from gpu.session import Figures, Session
from gpu.targets import MASKS
from gpu.timing import L2_BYTES
from saccade_kernels import distributions

VOCABULARY = 151936
SWEEP = (1, 8, 32, 128)
"""Rows of a step that grammars hold."""
GOAL_ROWS = 32
SHARES = {"all allowed": 1.0, "a string": 0.95, "a few": 0.001, "none": 0.0}
"""Of tokens that a mask allows; what it takes away is what is written."""


def run_masks(session: Session, found: Figures) -> None:
    """Every number of rows, under masks that take away nothing, little, most and all."""
    for rows in (2,) if session.dry else SWEEP:
        session.measure(found, f"{rows} rows", 1, partial(_one_size, session, rows=rows))


def _one_size(session: Session, found: Figures, rows: int) -> None:
    device, width = session.device, 97 if session.dry else VOCABULARY
    words, every = -(-width // 32), torch.arange(rows, device=device)
    moved = rows * width * 4
    count = 1 if session.dry else max(1, min(64, round(L2_BYTES / moved)))
    sets = [torch.randn(rows, width, device=device) for _ in range(count)]
    copies = [partial(torch.clone, logits) for logits in sets]
    copied = session.time(found, "copy", copies)
    for label, share in SHARES.items():
        allowed = torch.zeros(rows, words, dtype=torch.int32, device=device)
        for bit in range(32):
            chosen = torch.rand(rows, words, device=device) < share
            allowed |= chosen.int() << bit
        _check(sets[0].clone(), every, allowed)
        calls = [partial(backend.mask_rows, logits, every, allowed, every) for logits in sets]
        seconds = session.time(found, label, calls)
        if seconds is not None and copied:
            found[label]["of_copy"] = seconds / copied
    if rows == GOAL_ROWS or session.dry:
        session.reach(MASKS, found["a few"].get("of_copy", float("inf")))
    session.say(f"masks of {rows} rows:", {k: v.get("us") for k, v in found.items()}, "us")


def _check(logits: torch.Tensor, every: torch.Tensor, allowed: torch.Tensor) -> None:
    wanted = logits.double()
    distributions.mask_rows(wanted, every, allowed, every)
    backend.mask_rows(logits, every, allowed, every)
    assert torch.equal(logits.double(), wanted), "masks are wrong"
