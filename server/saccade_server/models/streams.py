"""Editing the residual stream: what a step does to it, where sites.py lets it."""

from __future__ import annotations

from dataclasses import dataclass

from saccade_kernels.stream_tables import StreamTables


@dataclass(frozen=True)
class StreamStep:
    """What a step does to residuals; its rows follow the tables' rows as attention's do.

    ``layers``: no row of the step has an edit at another residual.
    """

    tables: StreamTables
    layers: frozenset[int]
