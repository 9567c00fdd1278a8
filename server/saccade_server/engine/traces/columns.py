"""What becomes of the axis of keys: columns of an attention reading.

A column is a group of keys, or a single key. Which keys are sinks differs by layer and is known
when the layer has scored the step's tokens; which are recent differs by row; the others are known
before.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_server.engine.batch import slots_of
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.traces.base import Traced
from saccade_server.engine.traces.data import AttentionReading, Span


class Columns:
    """The columns of one reading for the rows of one chunk."""

    def __init__(self, parts: EngineParts, traced: Traced[AttentionReading]) -> None:
        reading, end = traced.reading, traced.end
        self._reading, self._parts = reading, parts
        own = _positions(reading.keys)
        self.count = len(own) if reading.each else len(names(reading))
        keys = own if reading.each else _groups(reading, end)
        slots = np.zeros(0, np.int64)
        if reading.sinks != "keep":
            slots = slots_of(traced.sequence.pages, 0, end)
        self._keys, self._slots = parts.upload(keys, slots)
        self._known: dict[tuple[int, int], torch.Tensor] = {}  # by first row and width

    def reduce(self, weights: torch.Tensor, layer: int, first: int) -> torch.Tensor:
        """Columns of rows from position ``first`` on, [rows, heads, columns].

        Args:
            weights: [rows, heads, keys], for as many keys as the longest row has, or more.
        """
        if self._reading.each:
            return self._each(weights, layer)
        return weights @ self._members(weights, layer, first)

    def _each(self, weights: torch.Tensor, layer: int) -> torch.Tensor:
        found = weights.index_select(2, self._keys.clamp(max=weights.shape[2] - 1))
        found = found.masked_fill_(self._keys >= weights.shape[2], 0.0)
        if self._reading.sinks == "drop":
            sinks = self._sinks(layer)
            own = sinks.index_select(0, self._keys.clamp(max=len(sinks) - 1))
            found = found.masked_fill_(own, 0.0)
        return found

    def _members(self, weights: torch.Tensor, layer: int, first: int) -> torch.Tensor:
        """Which column each key counts to, one-hot, [rows or 1, keys, columns]."""
        width = weights.shape[2]
        members = self._known.get((first, width))
        if members is None:
            members = self._others(weights, first)
            if len(members) == 1:  # all layers need it, and it is small
                self._known[first, width] = members
        if self._reading.sinks == "keep":
            return members
        sinks = self._sinks(layer)[:width]
        members = members.clone()
        members[:, : len(sinks)].masked_fill_(sinks[:, None], 0.0)
        if self._reading.sinks == "group":
            members[:, : len(sinks), 0] = sinks.to(members.dtype)
        return members

    def _others(self, weights: torch.Tensor, first: int) -> torch.Tensor:
        """The same if no key were a sink."""
        reading, (rows, _, width) = self._reading, weights.shape
        groups = self._keys[:width][None]
        if reading.recent:
            row = torch.arange(first, first + rows, device=groups.device)[:, None]
            key = torch.arange(groups.shape[1], device=groups.device)
            place = int(reading.sinks == "group")
            groups = torch.where(row - key < reading.recent, place, groups)
        column = torch.arange(self.count, device=groups.device)
        members = weights.new_zeros(len(groups), width, self.count)  # keys behind the last: nowhere
        members[:, : groups.shape[1]] = (groups[..., None] == column).to(weights.dtype)
        return members

    def _sinks(self, layer: int) -> torch.Tensor:
        """Which keys are sinks of the layer, bool [keys]."""
        scores = self._parts.sink_scores[layer].index_select(0, self._slots)
        return scores >= self._reading.threshold


def names(reading: AttentionReading) -> list[str]:
    """What the columns of groups are called, in order; groups of keys by their numbers."""
    found = ["sinks"] * (reading.sinks == "group") + ["recent"] * bool(reading.recent)
    return [*found, *(str(number) for number in range(len(reading.keys))), "rest"]


def _groups(reading: AttentionReading, end: int) -> NDArray[np.int64]:
    """The column that each key before ``end`` counts to if it is no sink and not recent: int64."""
    first = len(names(reading)) - len(reading.keys) - 1
    found = np.full(end, first + len(reading.keys), np.int64)
    for number, spans in reversed(list(enumerate(reading.keys))):
        for start, last in spans:
            found[start:last] = first + number
    return found


def _positions(groups: tuple[tuple[Span, ...], ...]) -> NDArray[np.int64]:
    """Positions of keys, group by group: int64."""
    spans = [np.arange(*span, dtype=np.int64) for group in groups for span in group]
    return np.concatenate([np.zeros(0, np.int64), *spans])
