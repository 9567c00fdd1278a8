r"""WAAD: windowed average attention distance ("Attention Illuminates LLM Reasoning", ICML 2026).

    WAAD_t  = sum over keys s of A_local[t, s] min(t - s, W)
    Delta_t = |WAAD_t - WAAD_{t+1}|

of the mean map of the local heads (see reach.py). Rows that plan what comes look further back, so a
large Delta marks the tokens before a plan. It tells where an answer turns, not whether it is true:
how well it finds hallucinations is measured in docs/detectors.md and not claimed.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from saccade_server.detectors.reach import OverReach, Rows, chosen_heads, listed, own_rows
from saccade_server.detectors.traced import Floats, Reduce, Scores, Traced, by_token, nothing


class WAAD(OverReach):
    """How far back local heads look, within a window."""

    title: ClassVar[str] = "Windowed average attention distance"
    summary: ClassVar[str] = "How far back the local heads look at each token of the answer."
    source: ClassVar[str] = "Attention Illuminates LLM Reasoning, arXiv 2510.13554, ICML 2026"
    unit: ClassVar[str] = "positions"
    suspect: ClassVar[Literal["low", "high"]] = "high"

    name: Literal["waad"] = "waad"

    window: int = Field(10, ge=1, le=4096)
    """W, the farthest that a distance counts, in positions."""

    reduce: Reduce = "mean"
    """How the tokens' scores become the answer's: its least, mean or greatest."""

    def scores(self, traced: Traced) -> Scores:
        rows = own_rows(traced)
        if rows is None:
            return nothing("no row was computed for a token of the answer")
        local = chosen_heads(rows.reach, self.heads, nearest=True)
        tokens = np.full(rows.tokens, np.nan)
        found = waad(rows, rows.mean_map(local), self.window)
        tokens[: len(found)] = found
        changes = np.abs(np.diff(tokens))
        return by_token(tokens, self.reduce, changes=changes, local_heads=listed(local))


def waad(rows: Rows, weights: Floats, window: int) -> Floats:
    """WAAD [row] of a map [row, key]."""
    found: Floats = (weights * np.clip(rows.distances, 0, window)).sum(1)
    return found
