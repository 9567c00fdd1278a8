"""What each key meant to the tokens that were drawn: saliency by layer, head and key.

Behind a step its traced rows are gone back through (models/gradient.py), for the token that each
has drawn. Where a rule may take another candidate, all of its pool are judged, and what
is of the token that was taken is kept once the host knows it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_server.engine.batch import Ints
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.rules.candidates import pool_of, pool_params
from saccade_server.engine.sampler import Columns
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.traces.base import Drawn, Reader, Traced, Watch, rows_of
from saccade_server.engine.traces.data import SaliencyReading
from saccade_server.engine.traces.parts import as_decodes
from saccade_server.models.gradient import Rows, maps
from saccade_server.models.tape import Activation, RowsTape, wanted_of

MOST_REPLICAS = 128
"""Rows times candidates of one pass, which bounds the memory of its gradients."""

Found = tuple[Traced[SaliencyReading], Ints, NDArray[Any]]
"""A row, its candidates, and their saliency, [candidates, ...]."""


@dataclass(frozen=True)
class Places:
    """Which heads and keys a reading wants, on the device."""

    heads: torch.Tensor  # int64
    keys: torch.Tensor  # int64, positions


class SaliencyReader(Reader[SaliencyReading]):
    """Of rows that tokens are drawn from, one by one."""

    kind = SaliencyReading

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        self._places: dict[Sequence, dict[str, Places]] = defaultdict(dict)
        self._open: dict[Sequence, list[Found]] = {}

    def why_refused(self, reading: SaliencyReading, request: GenerateRequest) -> str | None:
        """Rows of the prompt draw nothing, and given tokens are not drawn."""
        if reading.rows[0] < len(request.tokens) - 1 or request.given:
            return "saliency is of rows that tokens are drawn from"
        heads = range(self.parts.model.heads)
        if not reading.layers or not reading.heads or not {*reading.heads} <= {*heads}:
            return f"its layers and heads (0 to {heads[-1]}) are some"
        if not reading.keys or not all(0 <= start < end for start, end in reading.keys):
            return "its keys are no spans"
        if "row" in reading.over:
            return "its rows stay apart"
        return None

    def watch(self, traced: Batch[Traced[SaliencyReading]]) -> SaliencyWatch:
        """One for all rows."""
        return SaliencyWatch(self, traced)

    def accepted(self, sequence: Sequence) -> None:
        """Keep what is of the token that was taken."""
        for one, tokens, found in self._open.pop(sequence, ()):
            chosen = tokens.tolist().index(sequence.tokens[-1])
            one.log.add(one.reading.name, one.start, found[chosen : chosen + 1])

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._places.pop(sequence, None)
        self._open.pop(sequence, None)

    def log(self, found: Found) -> None:
        """Log what is of the only candidate; several wait until one is taken."""
        one, tokens, array = found
        if len(tokens) == 1:
            one.log.add(one.reading.name, one.start, array)
        else:
            self._open.setdefault(one.sequence, []).append(found)

    def wanted_by(self, one: Traced[SaliencyReading]) -> Places:
        """What a reading wants."""
        known, reading = self._places[one.sequence], one.reading
        if reading.name not in known:
            keys = np.concatenate([np.arange(start, end) for start, end in reading.keys])
            known[reading.name] = Places(*self.parts.upload(np.array(reading.heads), keys))
        return known[reading.name]


class SaliencyWatch(Watch):
    """Keeps what layers computed for rows, and goes back through them behind the step."""

    def __init__(self, reader: SaliencyReader, traced: Batch[Traced[SaliencyReading]]) -> None:
        parts = reader.parts
        self._reader, self._parts, self._groups = reader, parts, list(_groups(traced))
        ordered = [one for group in self._groups for one in group]
        (rows,) = parts.upload(rows_of(ordered))
        depth, lowest = parts.model.layers, min(one.reading.layers[0] for one in traced)
        wanted = wanted_of(parts.model.decoder.spec)
        self._tape = RowsTape(rows, lowest, wanted)
        self.activations = frozenset(
            (what, layer)
            for what in wanted
            for layer in range(lowest, depth)
            if layer or what is not Activation.EDITED_RESIDUAL
        ) | {(what, depth) for what in (Activation.RESIDUAL, Activation.EDITED_RESIDUAL)}
        self._tokens: list[torch.Tensor] = []

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """See :class:`Watch`."""
        self._tape.keep(what, layer, made)

    def results(self, drawn: Drawn) -> list[torch.Tensor]:
        """Of each group its candidates, int64 [rows, K], then of each row [K, ...]."""
        found: list[torch.Tensor] = []
        first = 0
        for group in self._groups:
            tokens = self._candidates(group, drawn)
            found += [tokens, *self._maps(group, tokens, first)]
            first += len(group)
        return found

    def note(self, arrays: Batch[NDArray[Any]]) -> None:
        """See :class:`Watch`."""
        left = iter(arrays)
        for group in self._groups:
            tokens = next(left)
            for one, row in zip(group, tokens, strict=True):
                self._reader.log((one, row, next(left)))

    def _candidates(self, group: list[Traced[SaliencyReading]], drawn: Drawn) -> torch.Tensor:
        """The token of each row; of rows that a rule may take others for, its pool."""
        assert drawn.tokens is not None, "these rows draw"
        places = np.array([drawn.places[one.chunk] for one in group], np.int64)
        (at,) = self._parts.upload(places)
        count = group[0].sequence.needs.candidates
        if count == 1:
            return drawn.tokens.index_select(0, at)[:, None]
        params = [pool_params(one.sequence.request.sampling) for one in group]
        (values,) = self._parts.upload(Columns.table(params, [0.0] * len(params)))
        logits = drawn.logits.index_select(0, at)
        edited = drawn.edited.index_select(0, at)
        return pool_of(edited, logits, Columns(*values[:, :, None]), count)[0]

    def _maps(
        self, group: list[Traced[SaliencyReading]], tokens: torch.Tensor, first: int
    ) -> list[torch.Tensor]:
        """Of each row [K, layers, heads, keys] without the axes that are taken out."""
        step, positions = as_decodes(self._parts, group)
        at = torch.arange(first, first + len(group), device=tokens.device)
        rows = Rows(step, positions, self._tape, at)
        layers = {layer for one in group for layer in one.reading.layers}
        found: list[list[torch.Tensor]] = [[] for _ in group]
        for layer, saliency in maps(self._parts.model, rows, layers, tokens):
            for one, row, kept in zip(group, saliency, found, strict=True):
                if layer in one.reading.layers:
                    kept.insert(0, _chosen(row, one.reading, self._reader.wanted_by(one)))
        return [
            torch.stack(kept, 1).mean(1) if "layer" in one.reading.over else torch.stack(kept, 1)
            for one, kept in zip(group, found, strict=True)
        ]


def _groups(traced: Batch[Traced[SaliencyReading]]) -> Iterator[list[Traced[SaliencyReading]]]:
    """Rows of as many candidates, by what one pass can do together."""
    found: dict[int, list[Traced[SaliencyReading]]] = defaultdict(list)
    for one in traced:
        assert one.end == one.start + 1, "one token is drawn behind a row"
        found[one.sequence.needs.candidates].append(one)
    for count, some in found.items():
        most = max(MOST_REPLICAS // count, 1)
        yield from (some[start : start + most] for start in range(0, len(some), most))


def _chosen(saliency: torch.Tensor, reading: SaliencyReading, places: Places) -> torch.Tensor:
    """Of saliency [K, heads, keys that a step has] what a reading wants, [K, heads, its keys]."""
    heads = saliency.index_select(1, places.heads)
    if "head" in reading.over:
        heads = heads.mean(1)
    most = heads.shape[-1]
    there = heads.index_select(-1, places.keys.clamp(max=most - 1))
    return torch.where(places.keys < most, there, there.new_zeros(()))
