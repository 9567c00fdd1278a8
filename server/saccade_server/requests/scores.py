"""Log-probabilities of tokens that a request has itself: its prompt's, or a continuation's.

They are a reading of the engine, which comes in pieces with its outputs: here it is asked for and
put together.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.traces.data import ScoreReading, Trace, TracePiece
from saccade_server.engine.traces.scores import ARRAYS

NAME = "scores"
"""Of the reading: no array that a request's trace may ask for is called so."""


class TokenScore(msgspec.Struct, frozen=True):
    """How likely a token was where it stands; ``rank`` is 1 for the likeliest.

    ``top`` are the likeliest tokens there with their log-probabilities, in order.
    """

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


def scoring(
    request: GenerateRequest, start: int, tokens: tuple[int, ...], top: int
) -> GenerateRequest:
    """The same request, which also tells how likely ``tokens`` are.

    Args:
        start: position of the row that predicts the first of them; the others follow it.
        tokens: some of the request's own; none asks for nothing.
        top: how many of the likeliest tokens to tell beside each.
    """
    if not tokens:
        return request
    rows = (start, start + len(tokens))
    reading = ScoreReading(name=NAME, rows=rows, tokens=tokens, top=top)
    others = () if request.trace is None else request.trace.readings
    return replace(request, trace=Trace((*others, reading)))


class ScoreLog:
    """The scores of one sequence, as they come."""

    def __init__(self, reading: ScoreReading) -> None:
        self._reading = reading
        self._parts: dict[str, list[tuple[int, NDArray[np.generic]]]] = {n: [] for n in ARRAYS}

    @classmethod
    def of(cls, request: GenerateRequest) -> ScoreLog | None:
        """What a request will tell; None: nothing."""
        for reading in () if request.trace is None else request.trace.readings:
            if isinstance(reading, ScoreReading) and reading.name == NAME:
                return cls(reading)
        return None

    def take(self, pieces: Iterable[TracePiece]) -> None:
        """Take those of the pieces of an output that are the reading's."""
        for piece in pieces:
            name, _, array = piece.name.partition(".")
            if name == NAME:
                self._parts[array].append((piece.start, piece.array.unpack()))

    def entries(self) -> list[TokenScore]:
        """The score of every token, in order.

        Raises:
            ValueError: some are missing, as with a sequence that has not ended.
        """
        logprobs, ranks, tokens, values = (self._whole(name).tolist() for name in ARRAYS)
        top = (tuple(zip(*pair, strict=True)) for pair in zip(tokens, values, strict=True))
        found = zip(self._reading.tokens, logprobs, ranks, top, strict=True)
        return [TokenScore(*one) for one in found]

    @property
    def is_finite(self) -> bool:
        """False if some logits were not: then a log-probability is not a number."""
        return not any(np.isnan(part).any() for _, part in self._parts["logprobs"])

    def _whole(self, name: str) -> NDArray[np.generic]:
        parts = sorted(self._parts[name], key=lambda part: part[0])
        start, end = self._reading.rows
        for first, part in parts:
            if first != start:
                break
            start += len(part)
        if start != end or not parts:
            raise ValueError(f"scores of rows {start} to {end} are missing")
        return np.concatenate([part for _, part in parts])
