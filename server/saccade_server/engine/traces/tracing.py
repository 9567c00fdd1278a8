"""Carries traces out: finds the rows that readings want of a step, and lets readers watch it.

    ordinary step    a tape and a measure hand layers to watches as they run
    padded step      watches are shown the step's tape behind it, so neighbours stay in the graph
    on the host      what was read joins its sequence's log, and leaves with its next output

A step of sequences without traces makes no call here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from saccade_server.engine.batch import Step
from saccade_server.engine.combined import Combined
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.rules.base import Asked, EngineParts, News, RuleHandler
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Stage
from saccade_server.engine.traces.base import Drawn, LayerQueries, Reader, Traced, Watch
from saccade_server.engine.traces.data import Reading, Trace
from saccade_server.engine.traces.readers import READERS
from saccade_server.engine.traces.sinks import SinkScorer
from saccade_server.engine.transfer import Download
from saccade_server.engine.wants import Wants
from saccade_server.models.attention import AttentionCall
from saccade_server.models.probes import ResidualProbe
from saccade_server.models.tape import Activation, Readers


class TraceHandler(RuleHandler[Trace]):
    """One for all kinds of readings; it keeps nothing of a sequence itself."""

    kind = Trace

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        self._readers: dict[type[Reading], Reader[Any]] = {
            reader.kind: reader(parts) for reader in READERS
        }
        self._outputs: StepOutputs | None = None

    def why_refused(self, request: GenerateRequest, rule: Trace) -> str | None:
        """Why readings cannot be read, of this model or at all."""
        names = [reading.name for reading in rule.readings]
        if len(set(names)) < len(names):
            return "two readings of the trace have one name"
        for reading in rule.readings:
            reader = self._readers.get(type(reading))
            if reader is None:
                return f"the engine has no reader of {type(reading).__name__}"
            reason = _why_outside(reading, reader.places) or reader.why_refused(reading, request)
            if reason is not None:
                return f"{reading.name}: {reason}"
        return None

    def wants(self, sequence: Sequence, rule: Trace, decodes: bool) -> Wants:
        """Nothing, if no such row is read or padded steps leave what is; otherwise its layers."""
        first = sequence.prompt_length - (not decodes)
        read = [reading for reading in rule.readings if reading.rows[1] > first]
        if self._outputs is not None and all(self._readers[type(r)].padded for r in read):
            return Wants.NOTHING
        return Wants.LAYERS if read else Wants.NOTHING

    def stages(self, outputs: StepOutputs) -> Batch[Stage]:
        """None: what padded steps leave is read behind them, as far as anybody asks."""
        self._outputs = outputs
        return ()

    def accepted(self, sequence: Sequence, rule: Trace) -> None:
        """Tell the readers."""
        for reader in self._readers.values():
            reader.accepted(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Drop what readers keep."""
        for reader in self._readers.values():
            reader.forget(sequence)

    def look(self, step: Step, asked: Batch[Asked[Trace]]) -> TraceLook | None:
        """Watches of the rows that the step is read for, in its layers."""
        watches = self._watches(asked, step.starts)
        return TraceLook(watches) if watches else None

    def kept(self, outputs: StepOutputs, asked: Batch[Asked[Trace]]) -> TraceLook | None:
        """Watches that have seen what a padded step has left."""
        watches = self._watches(asked, range(outputs.most))
        for watch in watches:
            self._show(watch, outputs)
        return TraceLook(watches) if watches else None

    def launched(
        self, rows: Combined, asked: Batch[Asked[Trace]], look: TraceLook | None
    ) -> TraceNews | None:
        """Queue what was read."""
        if look is None:
            return None
        places = {a.chunk: a.row for a in asked if a.row >= 0}
        drawn = Drawn(rows.logits, rows.edited, rows.tokens, places)
        return TraceNews(look.watches, drawn)

    def staged(self, asked: Batch[Asked[Trace]]) -> TraceNews | None:
        """As :meth:`kept` and :meth:`launched`."""
        outputs = self._outputs
        assert outputs is not None, "a padded step has outputs"
        look = self.kept(outputs, asked)
        if look is None:
            return None
        places = {a.chunk: a.at for a in asked if a.row >= 0}
        drawn = Drawn(outputs.logits, outputs.logits, outputs.news.tokens, places)
        return TraceNews(look.watches, drawn)

    def _watches(self, asked: Batch[Asked[Trace]], starts: Batch[int]) -> list[Watch]:
        """``starts``: the first row of each chunk of the step."""
        scored = [(a.chunk, starts[a.at]) for a in asked if a.rule.needs_sinks]
        scorer = [SinkScorer(self.parts, scored)] if scored else []
        found: dict[type[Reading], list[Traced[Any]]] = {}
        for a in asked:
            for traced in _rows_of(a, starts[a.at]):
                found.setdefault(type(traced.reading), []).append(traced)
        watches = (
            reader.watch(found[kind]) for kind, reader in self._readers.items() if kind in found
        )
        return [*scorer, *(watch for watch in watches if watch is not None)]

    def _show(self, watch: Watch, outputs: StepOutputs) -> None:
        """Show a watch what a padded step has left."""
        tape, parts = outputs.tape, self.parts
        for what, layer in sorted(watch.activations, key=lambda kept: (kept[1], kept[0].value)):
            watch.keep(what, layer, tape.read(what, layer))
        for layer in sorted(watch.layers):
            query = tape.read(Activation.QUERY, layer)
            scores = parts.model.decoder.layers[layer].scores
            caches = (parts.keys[layer], parts.values[layer])
            watch.attend(LayerQueries(query, *caches, scores, layer))


def _why_outside(reading: Reading, places: int) -> str | None:
    """Why some of what a reading names is not there, of so many layers or places between them."""
    start, end = reading.rows
    if not 0 <= start < end:
        return f"rows {start} to {end} are none"
    if list(reading.layers) != sorted({*reading.layers} & {*range(places)}):
        return "its layers are not distinct layers of the model, in order"
    return None


def _rows_of(asked: Asked[Trace], row: int) -> Iterator[Traced[Any]]:
    """Which rows of a chunk, the first of which is ``row``, are read; none a second time.

    A tentative row is read when it runs again. Of a reading that computes nothing also rows of the
    cache are read, before the chunk.
    """
    chunk = asked.chunk
    known = chunk.sequence.counted
    last = chunk.end - chunk.is_tentative
    for reading in asked.rule.readings:
        first = max(known, chunk.start) if reading.computes else known
        start, end = max(first, reading.rows[0]), min(last, reading.rows[1])
        if start < end:
            yield Traced(reading, chunk, start, end, row + start - chunk.start)


@dataclass(frozen=True)
class TraceLook:
    """The watches of a step, in its layers."""

    watches: list[Watch]

    @cached_property
    def tape(self) -> Readers | None:
        """Hands over what layers make."""
        found: dict[tuple[Activation, int], list[Callable[[torch.Tensor], None]]] = {}
        for watch in self.watches:
            for what, layer in watch.activations:
                found.setdefault((what, layer), []).append(partial(watch.keep, what, layer))
        return Readers(found) if found else None

    @property
    def probes(self) -> tuple[ResidualProbe, ...]:
        """Of all watches."""
        return tuple(probe for watch in self.watches for probe in watch.probes)

    @property
    def measures(self) -> tuple[TraceMeasure, ...]:
        """Hands attention over, if any watch looks at it."""
        layers = frozenset(layer for watch in self.watches for layer in watch.layers)
        return (TraceMeasure(layers, self.watches),) if layers else ()


@dataclass(frozen=True)
class TraceMeasure:
    """An :class:`~saccade_server.models.attention.AttentionMeasure` that changes nothing.

    The measures of rules come before it and have settled the layer's key classes.
    """

    layers: frozenset[int]
    watches: list[Watch]

    def before(self, call: AttentionCall) -> None:
        """Hand the layer's queries over."""
        caches = (call.key_cache, call.value_cache)
        scores = (call.scale, call.softcap, call.window)
        queries = LayerQueries(call.query, *caches, scores, call.layer)
        for watch in self.watches:
            if call.layer in watch.layers:
                watch.attend(queries)

    def after(self, call: AttentionCall, output: torch.Tensor) -> torch.Tensor:
        """Nothing."""
        return output


class TraceNews(News):
    """What a step has read, on its way to the host."""

    def __init__(self, watches: list[Watch], drawn: Drawn) -> None:
        self._parts = [(watch, Download(watch.results(drawn))) for watch in watches]

    def note(self) -> None:
        """Log it; waits for the device."""
        for watch, download in self._parts:
            watch.note([tensor.numpy() for tensor in download.wait()])
