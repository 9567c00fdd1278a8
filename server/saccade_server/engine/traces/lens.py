"""The logit lens: the likeliest tokens of residuals that enter layers."""

from __future__ import annotations

from collections.abc import Sequence as Batch
from typing import Any

from numpy.typing import NDArray

from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.traces.base import Traced
from saccade_server.engine.traces.data import LensReading
from saccade_server.engine.traces.exits import ExitReader, ExitWatch
from saccade_server.models.lens import early_tokens


class LensReader(ExitReader[LensReading]):
    """Leaves two arrays, the reading's name with ``.tokens`` and ``.logprobs`` behind it."""

    kind = LensReading

    def why_refused(self, reading: LensReading, request: GenerateRequest) -> str | None:
        """Without layers there are no columns."""
        if not reading.layers:
            return "it has no layers"
        most = self.parts.model.vocab_size
        return None if 1 <= reading.top <= most else f"top must be 1 to {most}"

    def watch(self, traced: Batch[Traced[LensReading]]) -> LensWatch:
        """One for all rows."""
        model, most = self.parts.model, max(one.reading.top for one in traced)
        return LensWatch(self.parts, traced, lambda rows: early_tokens(model, rows, most))


class LensWatch(ExitWatch[LensReading]):
    """Logs as many tokens as each reading wants."""

    def log(self, traced: Batch[Traced[LensReading]], arrays: Batch[NDArray[Any]]) -> None:
        """See :class:`ExitWatch`."""
        first = 0
        for one in traced:
            last = first + one.end - one.start
            for name, array in zip(("tokens", "logprobs"), arrays, strict=True):
                rows = array[first:last, :, : one.reading.top]
                one.log.add(f"{one.reading.name}.{name}", one.start, rows)
            first = last
