"""Scores of the scripted engine: each token has its own, wherever it stands."""

import numpy as np
from msgspec.structs import replace

from saccade_server.engine.arrays import Array
from saccade_server.engine.request import EngineOutput, GenerateRequest
from saccade_server.engine.traces.data import ScoreReading, TracePiece
from saccade_server.engine.traces.scores import ARRAYS


def fake_score(token: int) -> tuple[float, int]:
    """Log-probability and rank of a token, wherever it stands."""
    return -(token % 4) / 2, token % 4 + 1


def read_scores(request: GenerateRequest, wrong: object = None) -> tuple[TracePiece, ...]:
    """What a request's score readings get: two pieces each, the second first.

    ``wrong``: the last log-probability, or "missing" if there is no first piece.
    """
    found = []
    for reading in () if request.trace is None else request.trace.readings:
        if isinstance(reading, ScoreReading):
            start = reading.rows[0]
            half = len(reading.tokens) // 2
            for first, some in ((half, reading.tokens[half:]), (0, reading.tokens[:half])):
                values = np.array([fake_score(token) for token in some]).reshape(-1, 2)
                if first == 0 and wrong == "missing":
                    continue
                if isinstance(wrong, float):
                    values[:, 0] = wrong
                likeliest = np.tile(np.arange(65, 65 + reading.top), (len(some), 1))
                arrays = (values[:, 0], values[:, 1], likeliest, -1.0 - (likeliest - 65))
                for name, array in zip(ARRAYS, arrays, strict=True):
                    whole = name in ("ranks", "top_tokens")
                    packed = Array.pack(array.astype(np.int32 if whole else np.float32))
                    found.append(TracePiece(f"{reading.name}.{name}", start + first, packed))
    return tuple(found)


def with_scores(output: EngineOutput, scores: tuple[TracePiece, ...]) -> EngineOutput:
    """An output that brings them, too."""
    return replace(output, trace=(*output.trace, *scores))
