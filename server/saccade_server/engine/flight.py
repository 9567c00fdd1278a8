"""A step on its way: launched on the device, its results not read yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from saccade_interventions.plan import Plan
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.outputs import PaddedDrawing
from saccade_server.engine.rules.base import Pending
from saccade_server.engine.sampler import Drawing, Sample
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Download


@dataclass
class InFlight:
    """What a launched step will give."""

    chunks: tuple[Chunk, ...]
    drawing: Drawing | PaddedDrawing | None  # None: no token is drawn
    counted: tuple[Sequence, ...] = ()  # whose counters come along, see Receipt
    moved: Download | None = None
    pending: tuple[Pending, ...] = ()  # what rules are to know
    _found: list[tuple[Chunk, Sample | None]] | None = field(default=None, init=False)

    def wait(self) -> list[tuple[Chunk, Sample | None]]:
        """Every chunk with the token that follows it; waits for the device.

        A chunk that draws and has no token gave logits that are not finite. Counters are noted
        in their sequences. It may be asked again.
        """
        if self._found is None:
            self._found = self._wait()
        return self._found

    def _wait(self) -> list[tuple[Chunk, Sample | None]]:
        samples = [] if self.drawing is None else self.drawing.wait()
        if self.moved is not None:
            (counters,) = self.moved.wait()
            for sequence, moved in zip(self.counted, counters.numpy(), strict=True):
                sequence.moved = moved
        if len(samples) == len(self.chunks):
            landed = list(zip(self.chunks, samples, strict=True))
        else:
            each = iter(samples)
            landed = [(chunk, next(each) if chunk.draws else None) for chunk in self.chunks]
        for pending in self.pending:
            pending.note()
            landed = [
                (chunk, None if sample is None else pending.choose(chunk, sample))
                for chunk, sample in landed
            ]
        return landed

    def again(self, chunk: Chunk) -> Plan | None:
        """The plan under which the chunk's last row is to run again, dropping its token."""
        if not self.pending:
            return None
        plans = (pending.again(chunk) for pending in self.pending)
        return next((plan for plan in plans if plan is not None), None)
