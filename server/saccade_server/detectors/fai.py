r"""FAI: future attention influence ("Attention Illuminates LLM Reasoning", ICML 2026).

    FAI_s = mean over rows t in [s + near, min(N - 1, s + far)] of A_global[t, s]

of the mean map of the global heads (see reach.py), for tokens s of the answer: how much later rows
look back at a token. The highest are the anchors of an answer. Tokens within ``near`` of its end
have none, so short answers have no score at all. A third-party implementation has 50 where the
paper, and this, have 100. Like WAAD it ranks tokens; docs/detectors.md measures it as a detector
all the same.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from saccade_server.detectors.reach import OverReach, Rows, chosen_heads, listed, own_rows
from saccade_server.detectors.traced import Floats, Reduce, Scores, Traced, by_token, nothing


class FAI(OverReach):
    """How much later rows look back at each token."""

    title: ClassVar[str] = "Future attention influence"
    summary: ClassVar[str] = "How much later rows of the answer look back at each of its tokens."
    source: ClassVar[str] = "Attention Illuminates LLM Reasoning, arXiv 2510.13554, ICML 2026"
    unit: ClassVar[str] = "share of attention"
    suspect: ClassVar[Literal["low", "high"]] = "low"

    name: Literal["fai"] = "fai"

    near: int = Field(10, ge=1, le=4096)
    """The first later row that counts, in tokens behind the one it looks at."""

    far: int = Field(100, ge=1, le=2**17)
    """The last one."""

    anchors: float = Field(0.4, gt=0, le=1)
    """The share of tokens, highest first, that are called anchors."""

    reduce: Reduce = "mean"
    """How the tokens' scores become the answer's: its least, mean or greatest."""

    @model_validator(mode="after")
    def _ordered(self) -> FAI:
        if self.far < self.near:
            raise PydanticCustomError("far", "far is not below near", {"at": "far"})
        return self

    def scores(self, traced: Traced) -> Scores:
        rows = own_rows(traced)
        if rows is None or len(rows.weights) <= self.near:
            return nothing(f"no row is {self.near} tokens behind any token of the answer")
        far_looking = chosen_heads(rows.reach, self.heads, nearest=False)
        tokens = fai(rows, rows.mean_map(far_looking), self.near, self.far)
        defined = np.flatnonzero(~np.isnan(tokens))
        order = defined[np.argsort(-tokens[defined], kind="stable")]
        count = max(1, int(self.anchors * len(defined)))
        anchors = sorted(int(at) for at in order[:count])
        heads = listed(far_looking)
        return by_token(tokens, self.reduce, anchors=anchors, global_heads=heads)


def fai(rows: Rows, weights: Floats, near: int, far: int) -> Floats:
    """FAI of every token of the answer; NaN where no row is far enough.

    ``weights`` is a map [row, key].
    """
    found: Floats = np.full(rows.tokens, np.nan)
    column = {int(key): at for at, key in enumerate(rows.keys)}
    for token in range(rows.tokens):
        later = weights[token + near : token + far + 1]
        if len(later) and token in column:
            found[token] = later[:, column[token]].mean()
    return found
