"""What a detector looks at, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Reduce = Literal["mean", "min", "max"]
Span = tuple[int, int]


@dataclass(frozen=True)
class Traced:
    """A finished answer and its trace, as docs/traces.md describes it.

    ``arrays`` are those that the detector's ``trace`` asks for; ``coordinates`` says by array and
    axis what lies along it: absolute positions of rows and keys, layers, names of classes.
    ``prompt`` is the prompt's length and ``tokens`` the answer's, without a token that ended it.
    Answer token t was drawn from row prompt - 1 + t, and its own row is prompt + t. ``images`` are
    the spans [start, end) of the prompt's images, ``texts`` those of the answer's tokens.
    ``density`` are the tensors of the artifact that an entry names.
    """

    arrays: Mapping[str, NDArray[Any]]
    coordinates: Mapping[str, Mapping[str, Sequence[Any]]]
    prompt: int
    tokens: int
    images: Sequence[Span] = ()
    texts: Sequence[str] = ()
    density: Mapping[str, NDArray[Any]] | None = None

    def of(self, name: str) -> Floats:
        """An array in float64.

        Raises:
            KeyError: the trace lacks it.
        """
        return np.asarray(self.arrays[name], np.float64)

    def along(self, name: str, axis: str) -> NDArray[Any]:
        """What lies along an axis of an array."""
        return np.asarray(self.coordinates[name][axis])

    def drawing(self, name: str) -> Floats:
        """The rows of an array [row, ...] that the answer's tokens were drawn from, in order."""
        rows = self.along(name, "row") - (self.prompt - 1)
        return self.of(name)[(rows >= 0) & (rows < self.tokens)]


@dataclass(frozen=True)
class Scores:
    """What a detector found.

    ``answer`` is one number for the whole answer, ``tokens`` one for each of its tokens (NaN where
    it is not defined), ``values`` what they are made of. Without ``answer``, ``reason`` says why.
    """

    answer: float | None
    tokens: Floats | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None


def nothing(reason: str) -> Scores:
    """No score, and why."""
    return Scores(None, reason=reason)


def by_token(tokens: Floats, how: Reduce, **values: Any) -> Scores:
    """Scores of tokens, and of the answer as their least, mean or greatest."""
    defined = tokens[~np.isnan(tokens)]
    if not len(defined):
        return nothing("no token of the answer has a score")
    answers = {"mean": defined.mean(), "min": defined.min(), "max": defined.max()}
    return Scores(float(answers[how]), tokens, values)
