"""From vectors by layer to an artifact of kind "vectors" for one model, with what became of each.

What repeng and EasySteer do with a vector v of layer N, and the request that does the same with the
artifact (their coefficient or scale is ours, since vectors are stored as they are):

    repeng     set_control(vector, C)                    coefficient C, rows "prompt+generated"
               set_control(vector, C, normalize=True)    likewise, with keep_norm
    EasySteer  direct, scale C, apply prompt/generation  coefficient C, rows as its phases
               normalize=True                            likewise, with keep_norm
    llama.cpp  a control vector scaled by C              coefficient C, rows "prompt+generated"

A request without a coefficient gets 1, or what the import was given. repeng changes only the layers
that its ControlModel was made with, and a file mostly has all: name the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.artifact_values import LARGEST, SMALLEST_NORM
from saccade_interventions.artifacts import ArtifactError, artifact_id, write_artifact
from saccade_server.importing.found import Found, ImportRefused


@dataclass(frozen=True)
class Target:
    """The model that the vectors are for."""

    fingerprint: str
    layers: int
    hidden_size: int


@dataclass(frozen=True)
class Converted:
    """``lines``: for every layer its number, the residual's, and the length of the vector."""

    data: bytes
    digest: str
    lines: tuple[tuple[int, int, float], ...]


def converted(
    found: Found, model: Target, coefficient: float | None = None, notes: str = ""
) -> Converted:
    """Make the artifact.

    Args:
        coefficient: of requests that name none; None: 1.

    Raises:
        ImportRefused: the model has no such layer or another hidden size, or a vector is zero or
            not finite.
    """
    vectors = [_checked(layer, vector, model) for layer, vector in found.directions.items()]
    residuals = [layer + 1 for layer in found.directions]
    tensors = {"vectors": np.stack(vectors), "layers": np.array(residuals, np.int32)}
    defaults: dict[str, Any] = {} if coefficient is None else {"coefficient": coefficient}
    try:
        data = write_artifact("vectors", model.fingerprint, tensors, notes, defaults)
    except ArtifactError as error:
        raise ImportRefused(str(error)) from None
    lengths = [float(np.linalg.norm(vector.astype(np.float64))) for vector in vectors]
    lines = tuple(zip(found.directions, residuals, lengths, strict=True))
    return Converted(data, artifact_id(data), lines)


def _checked(layer: int, vector: NDArray[Any], model: Target) -> NDArray[np.float32]:
    """The vector as float32 [hidden]."""
    if layer >= model.layers:
        last = model.layers - 1
        raise ImportRefused(f"it has a vector for layer {layer}; the model's last one is {last}")
    if vector.size != model.hidden_size or vector.shape[-1:] != (model.hidden_size,):
        shape = " x ".join(map(str, vector.shape)) or "no"
        raise ImportRefused(
            f"the vector of layer {layer} has {shape} numbers; the model's hidden size is "
            f"{model.hidden_size}"
        )
    if not np.isfinite(vector).all() or np.abs(vector).max() > LARGEST:
        raise ImportRefused(
            f"the vector of layer {layer} has a number that is not finite, or above {LARGEST:g}"
        )
    stored = vector.reshape(-1).astype(np.float32)
    if np.linalg.norm(stored.astype(np.float64)) < SMALLEST_NORM:
        raise ImportRefused(f"the vector of layer {layer} is zero")
    return stored
