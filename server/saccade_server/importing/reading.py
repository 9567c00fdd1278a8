"""From a file's bytes to vectors by layer, whichever of the formats it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.artifacts import ArtifactError, read_artifact
from saccade_interventions.errors import brief
from saccade_server.importing import gguf_file, torch_file
from saccade_server.importing.found import MOST_BYTES, Found, ImportRefused
from saccade_server.importing.tensors_file import read_safetensors

NAMED = re.compile(r"(?:direction\.|layers?[._]?)?(0|[1-9][0-9]{0,5})", re.ASCII)
"""Names of a layer's vector: 10, direction.10, layer_10, layers.10."""
PICKLE = b"\x80"


def read_vectors(data: bytes, layers: Sequence[int] | None = None) -> Found:
    """Read vectors from bytes of anywhere; nothing in them is run.

    Args:
        layers: of a file that names layers, those to take; of one with a vector, or with a row for
            each, the layers that it belongs to.

    Raises:
        ImportRefused: they are no such file, and nothing else is ever raised.
    """
    check_size(len(data))
    if data.startswith(gguf_file.MAGIC):
        return _chosen(gguf_file.read_gguf(data), layers)
    if data.startswith(torch_file.MAGIC):
        return _placed(torch_file.read_torch(data), layers, "torch file")
    if data.startswith(PICKLE):
        raise ImportRefused(
            "this is a bare pickle, such as torch.save wrote before version 1.6; where you trust "
            "it, load it with torch and save it again"
        )
    with suppress(ArtifactError):
        digest = read_artifact(data).digest
        raise ImportRefused(f"this is an artifact already: {digest}")
    return _placed(read_safetensors(data), layers, "safetensors file")


def check_size(count: int) -> None:
    """Refuse what is too long to be vectors, such as a whole model, before it is read.

    Raises:
        ImportRefused: ``count`` bytes are.
    """
    if count > MOST_BYTES:
        raise ImportRefused(f"a file of vectors has at most {MOST_BYTES} bytes; got {count}")


def _placed(value: Any, layers: Sequence[int] | None, origin: str) -> Found:
    """Vectors of a file that holds tensors of any name."""
    if isinstance(value, np.ndarray):
        return Found(_given(value, layers), origin)
    if not isinstance(value, Mapping):
        raise ImportRefused(f"the {origin} holds no tensor and no dict of tensors")
    found: dict[int, NDArray[Any]] = {}
    for name, vector in value.items():
        named = NAMED.fullmatch(str(name))
        if named is None or isinstance(name, bool) or not isinstance(vector, np.ndarray):
            held = "no layer's vector" if named else "not the number of a layer"
            raise ImportRefused(f"its entry {brief(name)} is {held}")
        if int(named[1]) in found:
            raise ImportRefused(f"it has layer {named[1]} twice")
        found[int(named[1])] = vector
    return _chosen(Found(dict(sorted(found.items())), origin), layers)


def _given(value: NDArray[Any], layers: Sequence[int] | None) -> dict[int, NDArray[Any]]:
    """One vector for every layer that is named, or a row for each."""
    if layers is None:
        raise ImportRefused("the file does not say to which layers it belongs: name them")
    rows = value.reshape(-1, value.shape[-1]) if value.ndim else value.reshape(1, 1)
    if len(rows) not in (1, len(layers)):
        raise ImportRefused(f"the file has {len(rows)} rows; {len(layers)} layers were named")
    return {layer: rows[at if len(rows) > 1 else 0] for at, layer in enumerate(layers)}


def _chosen(found: Found, layers: Sequence[int] | None) -> Found:
    if not found.directions:
        raise ImportRefused("the file has no vectors")
    if layers is None:
        return found
    missing = [layer for layer in layers if layer not in found.directions]
    if missing:
        known = ", ".join(map(str, found.directions))
        raise ImportRefused(f"the file has no vector of layer {missing[0]}; it has {known}")
    chosen = {layer: found.directions[layer] for layer in layers}
    return Found(chosen, found.origin, found.model_type)
