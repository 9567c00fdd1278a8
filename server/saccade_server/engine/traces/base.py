"""How a kind of reading is read: a reader, and what it watches in one step.

A reader is asked at every step with the rows that its readings want of it (:class:`Traced`), and
gives a :class:`Watch`: what it looks at while layers run, and what it makes of it behind the step.
An ordinary step shows a watch its layers as they run; of a padded step, whose layers have run in a
graph, it is shown what the step has left on its tape, right behind it. So a reader is written once,
and rows beside the traced ones are computed as if nobody looked.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_kernels.batch import AttentionBatch
from saccade_server.engine.batch import Ints
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.traces.data import Reading
from saccade_server.engine.traces.log import TraceLog
from saccade_server.models.attention import AttentionCall
from saccade_server.models.probes import ResidualProbe
from saccade_server.models.tape import Activation

R = TypeVar("R", bound=Reading)


@dataclass(frozen=True)
class Traced(Generic[R]):
    """Rows of a chunk that a reading reads in a step: neighbours in the sequence and in the step.

    Each row of a reading is in one :class:`Traced` that counts, whatever is computed again.
    """

    reading: R
    chunk: Chunk
    start: int  # position of the first row
    end: int  # and of the one behind the last
    row: int  # of the step, the first

    @property
    def sequence(self) -> Sequence:
        """Whose rows they are."""
        return self.chunk.sequence

    @property
    def rows(self) -> Ints:
        """Rows of the step."""
        return np.arange(self.row, self.row + self.end - self.start)

    @property
    def log(self) -> TraceLog:
        """Where what was read goes."""
        assert self.sequence.traced is not None, "a sequence with a trace has a log"
        return self.sequence.traced


@dataclass(frozen=True)
class LayerQueries:
    """What one layer's attention reads: the queries of all rows of a step, rotated, and the cache.

    The step's own keys and values are stored already.
    """

    query: torch.Tensor  # [rows, heads, head_dim]
    key_cache: torch.Tensor  # [pages, PAGE, kv_heads, head_dim], likewise the values
    value_cache: torch.Tensor
    scores: tuple[float, float, int]  # scale, soft-cap and window
    layer: int

    def of(self, rows: torch.Tensor, batch: AttentionBatch) -> AttentionCall:
        """The attention of some rows, int64 [n], each a decode of ``batch``; see parts.py."""
        query, (scale, softcap, window) = self.query.index_select(0, rows), self.scores
        caches = (self.key_cache, self.value_cache, batch)
        return AttentionCall(query, *caches, self.layer, scale, softcap, window)


@dataclass(frozen=True)
class Drawn:
    """What the tokens of a step were drawn from, and which were; memory that later steps write."""

    logits: torch.Tensor  # [rows, vocabulary]
    edited: torch.Tensor  # behind changes of single logits
    tokens: torch.Tensor | None  # int64 [rows]; None: none was drawn
    places: Mapping[Chunk, int]  # the row of each chunk that draws


class Watch:
    """What a reader looks at in one step, and what it makes of it. Every hook may do nothing.

    Hooks in order of time: keep and attend, layer by layer (of a padded step first all that it has
    kept, then all attention), results when the step is queued, note when the device has computed
    them. All but note work on the device alone.
    """

    activations: frozenset[tuple[Activation, int]] = frozenset()
    """What :meth:`keep` is called with: what a layer makes, and the number of the layer."""
    layers: frozenset[int] = frozenset()
    """Those that :meth:`attend` is called for."""
    probes: tuple[ResidualProbe, ...] = ()
    """For sites that no tape keeps; a reader with some says that it wants LAYERS."""

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """Look at what a layer has made, [rows of the step or more, ...]."""

    def attend(self, queries: LayerQueries) -> None:
        """Look at the attention of a layer, key classes and edits of which are settled."""

    def results(self, drawn: Drawn) -> list[torch.Tensor]:
        """Queue what the host is to know; no tensor may be memory that later steps write."""
        return []

    def note(self, arrays: Batch[NDArray[Any]]) -> None:
        """Log the results."""


class Reader(Generic[R]):
    """Reads one kind of reading. A kind is a file: its reader, and its watch."""

    kind: ClassVar[type[Reading]]

    def __init__(self, parts: EngineParts) -> None:
        self.parts = parts

    def why_refused(self, reading: R, request: GenerateRequest) -> str | None:
        """Why this model, or the request, can never be read so."""
        return None

    @property
    def places(self) -> int:
        """Which ``layers`` there are: those of the model, or the places between them, one more."""
        return self.parts.model.layers

    @property
    def padded(self) -> bool:
        """True if padded steps leave all that it reads; otherwise its rows run as they come."""
        return True

    def watch(self, traced: Batch[Traced[R]]) -> Watch | None:
        """What it looks at in a step of which readings want these rows; at least one."""
        raise NotImplementedError

    def accepted(self, sequence: Sequence) -> None:
        """A token was added to a sequence with a plan."""

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence, which may never have asked."""


def rows_of(traced: Batch[Traced[Any]]) -> Ints:
    """The rows of the step that these are about."""
    return np.concatenate([one.rows for one in traced])


def spread(traced: Batch[Traced[Any]], array: NDArray[Any], suffix: str = "") -> None:
    """Log the rows of ``array``, [rows of all of these, ...], by the readings that want them.

    ``suffix``: of the array's name, behind that of a reading with several.
    """
    first = 0
    for one in traced:
        last = first + one.end - one.start
        one.log.add(one.reading.name + suffix, one.start, array[first:last])
        first = last
