"""Kinds of trace that are not attention: what residuals hold, and what tokens are drawn from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.artifact_values import rows_of
from saccade_interventions.artifacts import Artifact
from saccade_interventions.context import Context
from saccade_interventions.errors import InterventionError
from saccade_interventions.vectors import RESIDUAL, Site, unit_vectors
from saccade_server.detectors.vhd import t_vhd
from saccade_server.engine.arrays import Array
from saccade_server.engine.traces.data import (
    DivergenceReading,
    EntropyReading,
    LensReading,
    ProjectionReading,
    TokenShareReading,
)
from saccade_server.requests.errors import RequestError
from saccade_server.requests.traces.arrays import ArraySpec, Asked, Axis, Make, Values
from saccade_server.requests.traces.options import (
    Divergence,
    Entropy,
    LogitLens,
    Projections,
    TokenShares,
)
from saccade_server.requests.traces.scope import OUT_OF_RANGE, Scope

NATS = "nats"
VECTORS = ("vectors", "subspaces")
"""Kinds of artifacts whose vectors are directions."""

ByLayer = Mapping[int, NDArray[np.float64]]
"""Layer -> unit vectors [directions, hidden_size]."""


def entropy(scope: Scope, options: Entropy, path: str) -> Asked:
    """Of the distribution of the next token; with layers, of each one's residual."""
    rows = scope.rows(options.rows, f"{path}.rows")
    axes = [Axis.rows(rows)]
    layers: tuple[int, ...] = ()
    if options.layers is not None:
        layers = scope.residuals(options.layers, f"{path}.layers")
        axes.append(Axis.of("layer", layers))
    reading = EntropyReading(name="entropy", rows=rows, layers=layers)
    return Asked((reading,), (ArraySpec("entropy", ("entropy",), tuple(axes), NATS, rows=rows),))


def token_shares(scope: Scope, options: TokenShares, path: str) -> Asked:
    """How probable each group of tokens is, together."""
    rows = scope.rows(options.rows, f"{path}.rows")
    for at, group in enumerate(options.tokens):
        scope.check_tokens(group, f"{path}.tokens[{at}]")
    groups = tuple(map(tuple, options.tokens))
    reading = TokenShareReading(name="token_shares", rows=rows, groups=groups)
    axes = (Axis.rows(rows), Axis.of("group", tuple(range(len(groups)))))
    spec = ArraySpec("token_shares", ("token_shares",), axes, "probability", rows=rows)
    return Asked((reading,), (spec,))


def logit_lens(scope: Scope, options: LogitLens, path: str) -> Asked:
    """The likeliest tokens of residuals, by the model's own output projection."""
    rows = scope.rows(options.rows, f"{path}.rows")
    layers = scope.residuals(options.layers, f"{path}.layers")
    reading = LensReading(name="logit_lens", rows=rows, layers=layers, top=options.top)
    ranks = Axis.of("rank", tuple(range(options.top)))
    axes = (Axis.rows(rows), Axis.of("layer", layers), ranks)

    def array(name: str, unit: str, dtype: str, tokens: bool) -> ArraySpec:
        name = f"logit_lens.{name}"
        return ArraySpec(name, (name,), axes, unit, dtype, rows=rows, tokens=tokens)

    tokens = array("tokens", "token", "int32", True)
    return Asked((reading,), (tokens, array("logprobs", NATS, "float32", False)))


def vhd(scope: Scope, options: Divergence, path: str) -> Asked:
    """How far heads are from what they are without the images, and T-VHD."""
    scope.check_image(path)
    rows = scope.answer_rows(options.rows, f"{path}.rows")
    layers = scope.layers(options.layers, f"{path}.layers")
    heads, top = scope.heads(None, path), options.top
    if top is not None and top > len(heads):
        message = f"{path}.top is {top}; a layer has {len(heads)} heads."
        raise RequestError(message, code=OUT_OF_RANGE, param=f"{path}.top")
    reading = DivergenceReading(name="vhd", rows=rows, layers=layers)
    row, layer, head = Axis.rows(rows), Axis.of("layer", layers), Axis.of("head", heads)
    unit = "norm of a difference of head outputs"
    every = ArraySpec("vhd", ("vhd",), (row, layer, head), unit, rows=rows)
    total = ArraySpec("t_vhd", ("vhd",), (row,), unit, rows=rows, make=lambda v: t_vhd(v, top))
    return Asked((reading,), (every, total))


def projections(scope: Scope, options: Projections, path: str) -> Asked:
    """Dot products with unit directions; NaN where a layer has fewer of them than others."""
    rows = scope.rows(options.rows, f"{path}.rows")
    if options.directions is not None:
        site: Site = options.site or RESIDUAL
        layers = _layers(scope, site, options.layers, path)
        vectors = dict.fromkeys(layers, _directions(scope, options.directions, path))
    else:
        artifact = _artifact(scope, options, path)
        site = options.site or artifact.defaults.get("site") or RESIDUAL
        vectors = dict(_of_artifact(scope, artifact, site, options, path))
        layers = tuple(vectors)
    most = max(map(len, vectors.values()))
    readings = tuple(
        ProjectionReading(
            name=f"projections.{layer}",
            rows=rows,
            layers=(layer,),
            site=site,
            vectors=Array.pack(vectors[layer].astype(np.float32)),
        )
        for layer in layers
    )
    axes = (
        Axis.rows(rows),
        Axis.of("layer", layers),
        Axis.of("direction", tuple(range(most))),
    )
    names = tuple(reading.name for reading in readings)
    unit = f"projection of {site.replace('_', ' ')} on a unit vector"
    spec = ArraySpec("projections", names, axes, unit, rows=rows, make=_side_by_side(most))
    return Asked(readings, (spec,))


def _side_by_side(most: int) -> Make:
    """Layers [rows, 1, directions] of up to ``most`` directions: [rows, layers, most]."""

    def make(*layers: Values) -> Values:
        made = np.full((len(layers[0]), len(layers), most), np.nan, np.float32)
        for at, values in enumerate(layers):
            made[:, at, : values.shape[-1]] = values[:, 0]
        return made

    return make


def _layers(scope: Scope, site: Site, layers: list[int] | None, path: str) -> tuple[int, ...]:
    look_up = scope.residuals if site == RESIDUAL else scope.layers
    return look_up(layers, f"{path}.layers")


def _directions(scope: Scope, given: list[list[float]], path: str) -> NDArray[np.float64]:
    size = scope.model.hidden_size
    for at, vector in enumerate(given):
        where = f"{path}.directions[{at}]"
        if len(vector) != size:
            message = f"{where} has {len(vector)} numbers; the model's hidden size is {size}."
            raise RequestError(message, param=where)
        if not any(vector):
            raise RequestError(f"{where} is zero, which is no direction.", param=where)
    vectors = np.asarray(given, np.float64)
    # Squares of very large or small numbers are not numbers; those of their shares are.
    return unit_vectors(vectors / np.abs(vectors).max(1, keepdims=True))


def _artifact(scope: Scope, options: Projections, path: str) -> Artifact:
    assert options.artifact is not None
    context = Context(scope.model, scope.prompt, scope.artifacts)
    try:
        return context.artifact(options.artifact, VECTORS)
    except InterventionError as error:
        raise error.within(path) from None


def _of_artifact(
    scope: Scope, artifact: Artifact, site: Site, options: Projections, path: str
) -> ByLayer:
    """Unit vectors of the layers that are asked for, all of the artifact's if none are."""
    rows = rows_of(artifact.tensors["layers"])
    chosen = _layers(scope, site, options.layers or list(rows), path)
    for layer in chosen:
        if layer not in rows:
            message = f"The artifact has no vector for layer {layer}."
            raise RequestError(message, code=OUT_OF_RANGE, param=f"{path}.layers")
    vectors = artifact.tensors["vectors"].astype(np.float64)
    return {layer: unit_vectors(vectors[rows[layer]]) for layer in chosen}
