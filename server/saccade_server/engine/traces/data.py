"""What a request wants to see, and the pieces in which it arrives; plain data, no torch.

A *trace* is a tuple of *readings*. A reading names query rows by absolute position, ``start`` to
``end``: the row at position p predicts the token at p + 1. In the arrays of a reading rows come
first, then layers, then heads, then what the reading is about; an axis that is taken out (``over``)
is absent. Rows that are asked for are computed, never taken from the prefix cache, and count once,
however often preemption lets them run.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from saccade_server.engine.arrays import Array

Span = tuple[int, int]
"""Positions from the first on, without the last."""

PART_BYTES = 2**20
"""What one message has of a trace, if pieces allow; a piece of several rows has no more."""

Axis = Literal["layer", "head", "row"]
"""An axis that can be taken out: layers and heads by their mean, rows by their sum."""

SUMMED = -1
"""``start`` of a piece that is of no row: of a reading that sums over rows."""


class Reading(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Something of some query rows. ``layers`` are distinct and ascending.

    ``name``: of its arrays; no two readings of a trace share one.
    """

    computes: ClassVar[bool] = True
    """Its rows must be computed; False: what shared pages bring along is enough."""

    name: str
    rows: Span
    layers: tuple[int, ...] = ()

    @property
    def needs_sinks(self) -> bool:
        """True if it must be known which keys are sinks."""
        return False


class EntropyReading(Reading, frozen=True, kw_only=True, tag=True):
    """Entropy, in nats, of the model's own distribution over the next token: [rows].

    With ``layers``: of the residuals that enter these layers, as if the rest of the layers added
    nothing, [rows, layers]; what is behind the last layer counts as one more.
    """


class TokenShareReading(Reading, frozen=True, kw_only=True, tag=True):
    """The probability that the model's own distribution gives groups of tokens: [rows, groups].

    A group may hold none, and has 0.
    """

    groups: tuple[tuple[int, ...], ...]


class AttentionReading(Reading, frozen=True, kw_only=True, tag=True):
    """Shares of attention, as heads really used them: [rows, layers, heads, keys].

    Weights are behind all edits of scores and masses, and before those of heads. ``keys`` are
    groups of keys, of each the positions; a key counts to the first group that has it.

    ``each``: every key of the groups has a column of its own, group by group in the order of its
    spans, and ``recent`` is 0. Otherwise the columns are: sinks, if they are a group; recent keys,
    if ``recent``: a row's own and those before it, so many in all; one for each of ``keys``; and
    the rest. A key is in the first that it fits.

    ``sinks``: keys whose score in a layer is at least ``threshold`` are, in that layer, a group of
    their own, count nowhere, or are like all others; see :class:`SinkReading`.
    """

    heads: tuple[int, ...]
    keys: tuple[tuple[Span, ...], ...] = ()
    each: bool = False
    recent: int = 0
    sinks: Literal["group", "drop", "keep"] = "keep"
    threshold: float = 20.0
    over: frozenset[Axis] = frozenset()

    @property
    def needs_sinks(self) -> bool:
        """See :class:`Reading`."""
        return self.sinks != "keep"


class SinkReading(Reading, frozen=True, kw_only=True, tag=True):
    """How much of a sink each token is: [rows, layers].

    The score of a token is max |x_d| / RMS(x) over the dimensions d in which the model's sinks
    show, x being the residual that enters the layer.
    """

    computes: ClassVar[bool] = False

    @property
    def needs_sinks(self) -> bool:
        """See :class:`Reading`."""
        return True


class ProjectionReading(Reading, frozen=True, kw_only=True, tag=True):
    """What a site of layers holds, on given directions: [rows, layers, directions].

    ``vectors``: float32 [directions, hidden_size]. Of residuals ``layers`` are as those of
    :class:`EntropyReading`.
    """

    site: Literal["residual", "attention_output", "mlp_output"] = "residual"
    vectors: Array


class LensReading(Reading, frozen=True, kw_only=True, tag=True):
    """The likeliest tokens of residuals entering layers, as of :class:`EntropyReading`.

    Token ids and log-probabilities, [rows, layers, top] each.
    """

    top: int = 5


class SaliencyReading(Reading, frozen=True, kw_only=True, tag=True):
    """|A dL/dA| for L = -log p of the token that was drawn: [rows, layers, heads, keys].

    Rows are those that tokens are drawn from. The columns are the positions in ``keys``, span by
    span.
    """

    heads: tuple[int, ...]
    keys: tuple[Span, ...] = ()
    over: frozenset[Axis] = frozenset()


class DivergenceReading(Reading, frozen=True, kw_only=True, tag=True):
    """How far head outputs are from those without the images: [rows, layers, heads].

    VHD_i = ||z_i - z0_i||, z being what the output projection reads of head i, edits included, and
    z0 the same of the request's last branch, whose trace has the reading at the rows that go with
    these. Rows are those that tokens are drawn from.
    """


class ScoreReading(Reading, frozen=True, kw_only=True, tag=True):
    """How likely ``tokens`` are, one behind each row, by the model's own distribution.

    Four arrays, by the reading's name with a suffix: ``.logprobs`` and ``.ranks``, [rows] each;
    ``.top_tokens`` and ``.top_logprobs`` of the likeliest tokens in their places, [rows, top] each.
    """

    tokens: tuple[int, ...]
    top: int = 0


AnyReading = (
    EntropyReading
    | TokenShareReading
    | AttentionReading
    | SinkReading
    | ProjectionReading
    | LensReading
    | SaliencyReading
    | DivergenceReading
    | ScoreReading
)


class Trace(msgspec.Struct, frozen=True):
    """All that a request wants to see."""

    readings: tuple[AnyReading, ...]

    @property
    def first_row(self) -> int | None:
        """The first row that must be computed, whatever is cached; None: any may be cached."""
        return min((r.rows[0] for r in self.readings if r.computes), default=None)

    @property
    def needs_sinks(self) -> bool:
        """True if it must be known which keys are sinks: then all rows are scored."""
        return any(reading.needs_sinks for reading in self.readings)

    @property
    def compares(self) -> bool:
        """True if it compares with a branch without the images."""
        return any(isinstance(reading, DivergenceReading) for reading in self.readings)


class TracePiece(msgspec.Struct, frozen=True):
    """Rows ``start`` and the ones behind it of the reading's array ``name``, [rows, ...].

    Of a reading that sums over rows: the whole array, ``start`` being :data:`SUMMED`.
    """

    name: str
    start: int
    array: Array
