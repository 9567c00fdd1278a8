"""Kinds of trace that are shares of attention: what heads really used, edits included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.context import Span, runs
from saccade_interventions.image_views import NOWHERE, ImageView
from saccade_kernels.thresholds import default_threshold
from saccade_server.engine.traces.data import AttentionReading, SaliencyReading, SinkReading
from saccade_server.requests.errors import RequestError, TooMuch
from saccade_server.requests.traces.arrays import KEY, ArraySpec, Asked, Axis, Make, Values, same
from saccade_server.requests.traces.options import (
    Attention,
    ByHead,
    Columns,
    HeatMaps,
    Masses,
    Saliency,
    Sinks,
    VisualAttention,
)
from saccade_server.requests.traces.scope import TOO_LARGE, UNDEFINED, Scope
from saccade_server.requests.visual_attention import ratios, regions, summary

SHARE = "share of attention"
MOST_ROW_BYTES = 2**20
"""Of sums whose rows come one by one."""
MARK = "1 for a sink"
CLASSES = ("image", "sinks", "question", "recent", "rest")
VAS_CLASSES = ("image", "system", "rest")
STATISTICS = ("mean of ratios", "ratio of sums", *VAS_CLASSES)
RATIO = "image's share by the system prompt's"
READ_AS = ("sinks", "recent", "image", "question", "rest")
"""The order of the engine's columns, in which a key is in the first class that it fits."""


class Chosen:
    """The rows, layers and heads of a kind, and the axes that are left of them."""

    def __init__(self, scope: Scope, options: ByHead, path: str) -> None:
        self.rows = scope.rows(options.rows, f"{path}.rows")
        self.layers = scope.layers(options.layers, f"{path}.layers")
        self.heads = scope.heads(options.heads, f"{path}.heads")
        self.over = frozenset(options.reduce)

    def spec(
        self, name: str, reading: str, *last: Axis, make: Make = same, unit: str = SHARE
    ) -> ArraySpec:
        """An array by rows and what is left of layers and heads, with ``last`` behind."""
        axes = (Axis.rows(self.rows), *self._left(), *last)
        over = self.mean_over
        return ArraySpec(name, (reading,), axes, unit, rows=self.rows, mean_over=over, make=make)

    def summed(self, name: str, sums: Mapping[str, Span], *last: Axis) -> ArraySpec:
        """The same without rows; ``sums`` are the readings that it is made of, and their rows."""
        axes = (*self._left(), *last)
        unit = f"sum over rows of the {SHARE}"
        return ArraySpec(name, tuple(sums), axes, unit, sums=sums, mean_over=self.mean_over)

    @property
    def mean_over(self) -> dict[str, tuple[int, ...]]:
        """The axes that are averaged over, and what of them."""
        places = {"layer": self.layers, "head": self.heads}
        return {name: found for name, found in places.items() if name in self.over}

    def _left(self) -> Iterator[Axis]:
        for name, found in (("layer", self.layers), ("head", self.heads)):
            if name not in self.over:
                yield Axis.of(name, found)


def masses(scope: Scope, options: Masses, path: str) -> Asked:
    """Shares by class of keys; a key is in the first of :data:`READ_AS` that it fits."""
    of = Chosen(scope, options, path)
    grouped = options.sinks == "group" and bool(scope.model.sink_dims)
    there = {"sinks": grouped, "recent": bool(options.recent)}
    read = [name for name in READ_AS if there.get(name, True)]
    classes = tuple(name for name in CLASSES if name in read)
    order = [read.index(name) for name in classes]
    reading = AttentionReading(
        name="masses",
        rows=of.rows,
        layers=of.layers,
        heads=of.heads,
        keys=(scope.prompt.images, scope.question_keys),
        recent=options.recent,
        sinks="group" if grouped else "keep",
        threshold=_threshold(scope, options.tau),
        over=of.over,
    )
    spec = of.spec("masses", "masses", Axis.of("class", classes), make=lambda v: v[..., order])
    return Asked((reading,), (spec,))


def attention(scope: Scope, options: Attention, path: str) -> Asked:
    """Shares key by key."""
    of = Chosen(scope, options, path)
    spans = scope.keys(options.keys, f"{path}.keys")
    reading = AttentionReading(
        name="attention",
        rows=of.rows,
        layers=of.layers,
        heads=of.heads,
        keys=(spans,),
        each=True,
        over=of.over,
    )
    return Asked((reading,), (of.spec("attention", "attention", _keys(spans)),))


def columns(scope: Scope, options: Columns, path: str) -> Asked:
    """Shares key by key, summed over rows.

    Where a stop text may cut an answer, the engine has run rows that are not to count, so those of
    the answer come one by one and are added up here.
    """
    of = Chosen(scope, options, path)
    spans = scope.keys(options.keys, f"{path}.keys")
    start, end = of.rows
    parts = {"columns": (start, end)}
    if scope.may_stop and end > scope.length:
        first = max(start, scope.length)
        parts = {"columns.prompt": (start, first), "columns.answer": (first, end)}
    parts = {name: rows for name, rows in parts.items() if rows[0] < rows[1]}
    spec = of.summed("columns", parts, _keys(spans))
    if "columns.answer" in parts and spec.bytes > MOST_ROW_BYTES:
        message = (
            f"With stop texts {path} may have {MOST_ROW_BYTES} bytes, not {spec.bytes}: fewer "
            "layers, heads or keys would help, or rows of the prompt only."
        )
        raise TooMuch(message, code=TOO_LARGE, param=path)
    return Asked(
        tuple(
            AttentionReading(
                name=name,
                rows=rows,
                layers=of.layers,
                heads=of.heads,
                keys=(spans,),
                each=True,
                over=of.over if name == "columns.answer" else of.over | {"row"},
            )
            for name, rows in parts.items()
        ),
        (spec,),
    )


def saliency(scope: Scope, options: Saliency, path: str) -> Asked:
    """|A dL/dA| of each drawn token, L its negative log-probability."""
    scope.answer_rows(options.rows, f"{path}.rows")
    of = Chosen(scope, options, path)
    spans = scope.keys(options.keys, f"{path}.keys")
    reading = SaliencyReading(
        name="saliency",
        rows=of.rows,
        layers=of.layers,
        heads=of.heads,
        keys=spans,
        over=of.over,
    )
    return Asked((reading,), (of.spec("saliency", "saliency", _keys(spans), unit="|A dL/dA|"),))


def heatmaps(scope: Scope, options: HeatMaps, path: str) -> Asked:
    """Shares on the grid of each view of each image; cells without a token have none."""
    of = Chosen(scope, options, path)
    numbers = scope.chosen_images(options.images, f"{path}.images")
    if options.sinks != "keep":
        scope.check_sinks(f"{path}.sinks")
    views = [(name, view) for number in numbers for name, view in _views(scope, number)]
    threshold = _threshold(scope, options.tau)
    reading = AttentionReading(
        name="heatmaps",
        rows=of.rows,
        layers=of.layers,
        heads=of.heads,
        keys=tuple(_cells(view) for _, view in views),
        each=True,
        sinks="drop" if options.sinks == "drop" else "keep",
        threshold=threshold,
        over=of.over,
    )
    specs, first = [], 0
    for name, view in views:
        make = _on_grid(view, first)
        specs.append(of.spec(name, "heatmaps", *_grid(view), make=make))
        first += int((view.positions != NOWHERE).sum())
    if options.sinks == "keep":
        return Asked((reading,), tuple(specs))
    scored = SinkReading(name="heatmaps.sinks", rows=(0, scope.length), layers=of.layers)
    marks = [_marks(f"{name}.sinks", view, scored, threshold) for name, view in views]
    return Asked((reading, scored), (*specs, *marks))


def vas(scope: Scope, options: VisualAttention, path: str) -> Asked:
    """Visual attention scores of the user's rows, see requests/visual_attention.py."""
    scope.check_image(path)
    layers = scope.layers(options.layers, f"{path}.layers")
    heads = scope.heads(None, path)
    try:
        found = regions(scope.prompt, with_first=options.with_first)
    except ValueError as error:
        message = f"{path} is not defined for this prompt: {error}."
        raise RequestError(message, code=UNDEFINED, param=path) from None
    keys, rows = ((found.system,), found.images), found.rows
    reading = AttentionReading(name="vas.masses", rows=rows, layers=layers, heads=heads, keys=keys)
    axes = (Axis.rows(rows), Axis.of("layer", layers), Axis.of("head", heads))
    classes, statistics = Axis.of("class", VAS_CLASSES), Axis.of("statistic", STATISTICS)

    def array(name: str, axes: tuple[Axis, ...], unit: str, make: Make) -> ArraySpec:
        return ArraySpec(name, (reading.name,), axes, unit, rows=rows, make=make)

    return Asked(
        (reading,),
        (
            array("vas", axes, RATIO, _vas),
            array("vas.shares", (*axes, classes), SHARE, _vas_shares),
            array("vas.summary", (statistics,), f"{RATIO}; {SHARE}", _vas_summary),
        ),
    )


def sinks(scope: Scope, options: Sinks, path: str) -> Asked:
    """How much of a sink each token of the prompt is, and in how many layers it is one."""
    scope.check_sinks(path)
    layers = scope.layers(options.layers, f"{path}.layers")
    threshold = _threshold(scope, options.tau)
    rows = (0, scope.length)
    reading = SinkReading(name="sinks", rows=rows, layers=layers)
    layer, key = Axis.of("layer", layers), _keys((rows,))

    def array(name: str, axes: tuple[Axis, ...], unit: str, dtype: str, make: Make) -> ArraySpec:
        return ArraySpec(f"sinks.{name}", ("sinks",), axes, unit, dtype, rows=rows, make=make)

    return Asked(
        (reading,),
        (
            array("scores", (layer, key), "max |x_d| / RMS(x)", "float32", np.transpose),
            array(
                "found",
                (layer, key),
                MARK,
                "uint8",
                lambda v: np.transpose(v) >= threshold,
            ),
            array("lifetime", (key,), "layers", "int32", lambda v: (v >= threshold).sum(1)),
        ),
    )


def _threshold(scope: Scope, tau: float | None) -> float:
    return default_threshold(scope.model.hidden_size) if tau is None else tau


def _keys(spans: tuple[Span, ...]) -> Axis:
    return Axis.of(KEY, tuple(at for start, end in spans for at in range(start, end)))


def _views(scope: Scope, number: int) -> Iterator[tuple[str, ImageView]]:
    views = scope.images[number]
    for at, view in enumerate(views):
        yield f"heatmaps.{number}" + (f".{at}" if len(views) > 1 else ""), view


def _grid(view: ImageView) -> tuple[Axis, Axis]:
    return Axis("height", view.rows), Axis("width", view.columns)


def _cells(view: ImageView) -> tuple[Span, ...]:
    """The spans of a view's cells, in their order."""
    start, end = view.span
    shown = np.zeros(end - start, np.bool_)
    positions = view.positions
    shown[positions[positions != NOWHERE] - start] = True
    return tuple((start + first, start + last) for first, last in runs(shown))


def _on_grid(view: ImageView, first: int) -> Make:
    """Puts columns on a view's grid; the first of its cells is column ``first``."""
    there = view.positions != NOWHERE
    places = np.where(there, first + np.cumsum(there).reshape(there.shape) - 1, 0)

    def make(values: Values) -> NDArray[np.float32]:
        return np.where(there, values[..., places], np.float32(0))

    return make


def _marks(name: str, view: ImageView, scored: SinkReading, threshold: float) -> ArraySpec:
    axes = (Axis.of("layer", scored.layers), *_grid(view))

    def make(values: Values) -> Values:
        return view.of_cells(np.transpose(values >= threshold))

    return ArraySpec(name, (scored.name,), axes, MARK, "uint8", rows=scored.rows, make=make)


def _vas(values: Values) -> Values:
    """From columns of the system prompt, images and the rest."""
    return ratios(values[..., 1], values[..., 0])


def _vas_shares(values: Values) -> Values:
    """Images first."""
    return values[..., [1, 0, 2]]


def _vas_summary(values: Values) -> Values:
    """All rows, layers and heads together."""
    return np.array(astuple(summary(values[..., 1], values[..., 0])))
