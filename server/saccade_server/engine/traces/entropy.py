"""Entropy of the model's own distribution, at its end or where residuals enter layers."""

from __future__ import annotations

from collections.abc import Sequence as Batch
from typing import Any

from numpy.typing import NDArray

from saccade_server.engine.traces.base import Traced, spread
from saccade_server.engine.traces.data import EntropyReading
from saccade_server.engine.traces.exits import ExitReader, ExitWatch
from saccade_server.models import lens


class EntropyReader(ExitReader[EntropyReading]):
    """Of rows whether or not a token is drawn behind them; no edit of logits counts."""

    kind = EntropyReading

    def watch(self, traced: Batch[Traced[EntropyReading]]) -> EntropyWatch:
        """One for all rows."""
        model = self.parts.model
        return EntropyWatch(self.parts, traced, lambda rows: (lens.entropies(model, rows),))


class EntropyWatch(ExitWatch[EntropyReading]):
    """Logs entropies."""

    def log(self, traced: Batch[Traced[EntropyReading]], arrays: Batch[NDArray[Any]]) -> None:
        """See :class:`ExitWatch`."""
        (found,) = arrays
        spread(traced, found if traced[0].reading.layers else found[:, 0])
