"""Artifacts: what calibration found for one model, as safetensors bytes named by their SHA-256.

A request names an artifact by its digest and never carries numbers. The file is plain safetensors;
its metadata say ``saccade`` (version of the format), ``kind``, ``model`` (fingerprint of the model
it was made for) and, optionally, ``notes`` and ``defaults`` (:mod:`saccade_interventions.defaults`:
where and how strongly to use it). Kinds, with n >= 1; all heads are query heads:

    heads         heads int32 [n, 2]: (layer, head)
    vectors       vectors float32 [n, hidden], layers int32 [n]: where each belongs
    subspaces     likewise, up to 16 independent vectors a layer, which span its subspace
    low_rank      read, write float32 [n, hidden], layers int32 [n], optional shift float32 [n]: up
                  to 16 terms a layer of h' = h + sum of (read . h + shift) write
    diagonal      scale float32 [n, hidden], layers int32 [n], optional shift float32 [n, hidden]:
                  h' = scale h + shift, elementwise
    head_vectors  heads int32 [n, 2], vectors float32 [n, head_dim], optional sigma float32 [n]
    head_means    means float32 [layers, heads, head_dim]: mean head outputs, before the projection
    sinks         dims int32 [n]: dimensions of massive activations
    density       weights float32 [n], means float32 [n, 3], covariances float32 [n, 3, 3]: a
                  mixture of Gaussians over (x - center) / scale, both float32 [3], of three
                  features x of right answers, for the detector anatomy_of_a_lie

Layers are numbers of residuals, unless the defaults name another site. A residual is numbered by
the layer it enters; the one that leaves the last layer has the number of layers. The output of
layer l is therefore residual l + 1.

Bytes are hostile until :func:`read_artifact` has read them. It never runs or unpickles anything,
and takes no tensor, type, shape or name but these.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import StringConstraints

from saccade_interventions.artifact_values import check_values
from saccade_interventions.defaults import NOTHING, read_defaults, write_defaults
from saccade_interventions.errors import brief
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.vectors import RESIDUAL, Site, layers_at

FORMAT = "1"
MOST_BYTES = 64 * 2**20
MOST_HEADER = 64 * 2**10
MOST_NOTES = 16 * 2**10
MOST_ENTRIES = 2**16
"""Of heads, layers or dimensions; no model has as many."""

DIGEST = r"^sha256:[0-9a-f]{64}$"
DIGEST_TEXT = re.compile(DIGEST[1:-1])
ArtifactId = Annotated[str, StringConstraints(pattern=DIGEST)]
"""How a request names an artifact."""

Dims = tuple[str | int, ...]


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of one tensor; a name stands for a size, the same in all tensors."""

    dtype: str
    dims: Dims
    required: bool = True


_HEADS = TensorSpec("I32", ("n", 2))
_LAYERS = TensorSpec("I32", ("n",))
_VECTORS = TensorSpec("F32", ("n", "hidden_size"))
KINDS: Mapping[str, Mapping[str, TensorSpec]] = {
    "heads": {"heads": _HEADS},
    "vectors": {"vectors": _VECTORS, "layers": _LAYERS},
    "subspaces": {"vectors": _VECTORS, "layers": _LAYERS},
    "low_rank": {
        "read": _VECTORS,
        "write": _VECTORS,
        "shift": TensorSpec("F32", ("n",), required=False),
        "layers": _LAYERS,
    },
    "diagonal": {
        "scale": _VECTORS,
        "shift": replace(_VECTORS, required=False),
        "layers": _LAYERS,
    },
    "head_vectors": {
        "heads": _HEADS,
        "vectors": TensorSpec("F32", ("n", "head_dim")),
        "sigma": TensorSpec("F32", ("n",), required=False),
    },
    "head_means": {"means": TensorSpec("F32", ("layers", "heads", "head_dim"))},
    "sinks": {"dims": TensorSpec("I32", ("n",))},
    "density": {
        "weights": TensorSpec("F32", ("n",)),
        "means": TensorSpec("F32", ("n", 3)),
        "covariances": TensorSpec("F32", ("n", 3, 3)),
        "center": TensorSpec("F32", (3,)),
        "scale": TensorSpec("F32", (3,)),
    },
}
"""Kind -> its tensors."""

DTYPES = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4")}
METADATA = ("saccade", "kind", "model", "notes", "defaults")


class ArtifactError(ValueError):
    """Bytes that are no artifact, or an artifact that does not fit the model."""


@dataclass(frozen=True)
class Artifact:
    """A checked artifact. ``digest`` is "sha256:" and 64 hexadecimal digits; arrays are read-only.

    Artifacts with equal digests are equal.
    """

    digest: str
    kind: str = field(compare=False)
    model: str = field(compare=False)
    tensors: Mapping[str, NDArray[Any]] = field(compare=False, repr=False)
    notes: str = field(default="", compare=False)
    defaults: Mapping[str, Any] = field(default_factory=lambda: NOTHING, compare=False)


def artifact_id(data: bytes) -> str:
    """The name of the artifact with these bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def read_artifact(data: bytes) -> Artifact:
    """Check bytes from anywhere.

    Raises:
        ArtifactError: they are not a valid artifact; the message says why, in words for a client.
    """
    if len(data) > MOST_BYTES:
        raise ArtifactError(f"an artifact has at most {MOST_BYTES} bytes; got {len(data)}")
    header, start = _header(data)
    metadata = _metadata(header.pop("__metadata__", None))
    kind = metadata["kind"]
    tensors = _tensors(header, memoryview(data)[start:], KINDS[kind])
    try:
        check_values(kind, tensors)
    except ValueError as error:
        raise ArtifactError(str(error)) from None
    defaults = _defaults(kind, metadata.get("defaults"), tensors)
    digest = artifact_id(data)
    model, notes = metadata["model"], metadata.get("notes", "")
    return Artifact(digest, kind, model, MappingProxyType(tensors), notes, defaults)


def write_artifact(
    kind: str,
    model: str,
    tensors: Mapping[str, NDArray[Any]],
    notes: str = "",
    defaults: Mapping[str, Any] = NOTHING,
) -> bytes:
    """The bytes of an artifact; equal contents give equal bytes.

    Args:
        model: fingerprint of the model that the numbers were found on.
        tensors: as the kind has them; numbers are converted to the format's types.
        defaults: what requests get that say less, as the kind has them.

    Raises:
        ArtifactError: as :func:`read_artifact`, which reads the result back.
    """
    if kind not in KINDS:
        raise ArtifactError(_unknown_kind(kind))
    metadata = {"saccade": FORMAT, "kind": kind, "model": model}
    metadata |= {"notes": notes} if notes else {}
    metadata |= {"defaults": write_defaults(defaults)} if defaults else {}
    header: dict[str, Any] = {"__metadata__": metadata}
    body = bytearray()
    for name, values in sorted(tensors.items()):
        dtype = KINDS[kind][name].dtype if name in KINDS[kind] else "F32"
        packed = np.ascontiguousarray(values, dtype=DTYPES[dtype]).tobytes()
        offsets = [len(body), len(body) + len(packed)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        body += packed
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text + bytes(body)
    read_artifact(data)
    return data


def advice_for(artifact: Artifact, site: Site | None) -> Mapping[str, Any]:
    """What the defaults say to a request that names this site: nothing of another than theirs."""
    own = artifact.defaults.get("site", RESIDUAL)
    return artifact.defaults if site in (None, own) else NOTHING


def check_for(artifact: Artifact, model: ModelFacts) -> None:
    """Refuse an artifact that was made for another model.

    Raises:
        ArtifactError: another fingerprint, or a layer, head, dimension or size that is not there.
    """
    if artifact.model != model.fingerprint:
        raise ArtifactError(
            "the artifact was made for another model than the one served (the same checkpoint in "
            "float16 may have another fingerprint than in float32 or bfloat16)"
        )
    tensors = artifact.tensors
    for name, spec in KINDS[artifact.kind].items():
        for dim, size in zip(
            spec.dims, tensors[name].shape if name in tensors else (), strict=False
        ):
            expected = getattr(model, dim) if isinstance(dim, str) and dim != "n" else size
            if size != expected:
                raise ArtifactError(f"{name} has {dim} {size}; the model has {expected}")
    if "heads" in tensors:
        _check_below(tensors["heads"][:, 0], model.layers, "layer")
        _check_below(tensors["heads"][:, 1], model.heads, "query head")
    if "layers" in tensors:
        site = artifact.defaults.get("site", RESIDUAL)
        what = "residual" if site == RESIDUAL else "layer"
        _check_below(tensors["layers"], layers_at(site, model.layers), what)
    if artifact.kind == "sinks":
        _check_below(tensors["dims"], model.hidden_size, "residual dimension")


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The JSON object that opens a safetensors file, and where its data start."""
    size = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
    if not 2 <= size <= min(MOST_HEADER, len(data) - 8) or data[8:9] != b"{":
        raise ArtifactError(
            f"not a safetensors file: it opens with the size of its header, at most {MOST_HEADER}"
        )
    try:
        header = json.loads(data[8 : 8 + size].decode(), object_pairs_hook=_without_duplicates)
        json.dumps(header, ensure_ascii=False).encode()  # a lone surrogate could never be sent back
    except UnicodeEncodeError:
        raise ArtifactError("its header holds a lone surrogate, which is not text") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError("not a safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise ArtifactError("not a safetensors file: its header is not an object")
    return header, 8 + size


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ArtifactError("a name occurs twice in the header")
    return found


def _metadata(found: object) -> dict[str, str]:
    """The metadata, all known and all strings."""
    if not isinstance(found, dict) or found.get("saccade") != FORMAT:
        raise ArtifactError(f'not an artifact: its metadata lack "saccade": "{FORMAT}"')
    if unknown := sorted(found.keys() - set(METADATA)):
        raise ArtifactError(f"unknown metadata {brief(unknown[0])}")
    if not all(isinstance(value, str) for value in found.values()):
        raise ArtifactError("metadata are strings")
    if found.get("kind") not in KINDS:
        raise ArtifactError(_unknown_kind(found.get("kind")))
    if not DIGEST_TEXT.fullmatch(found.get("model", "")):
        raise ArtifactError('its metadata lack "model", the fingerprint of the model')
    if len(found.get("notes", "")) > MOST_NOTES:
        raise ArtifactError(f"notes have at most {MOST_NOTES} characters")
    return found


def _defaults(
    kind: str, text: str | None, tensors: Mapping[str, NDArray[Any]]
) -> Mapping[str, Any]:
    """What the metadata set, as far as the artifact has what they speak of."""
    if text is None:
        return NOTHING
    try:
        found = read_defaults(kind, text)
    except ValueError as error:
        raise ArtifactError(str(error)) from None
    there = tensors["layers"].tolist() if "layers" in tensors else []
    if not set(there).issuperset(found.get("layers", ())):
        raise ArtifactError("defaults.layers names a residual that has no vector")
    if "alpha" in found and "sigma" not in tensors:
        raise ArtifactError("defaults.alpha counts sigma, which the artifact does not have")
    return found


def _unknown_kind(kind: object) -> str:
    return f"unknown kind {brief(str(kind))}; known: {', '.join(KINDS)}"


def _tensors(
    header: Mapping[str, Any], body: memoryview, specs: Mapping[str, TensorSpec]
) -> dict[str, NDArray[Any]]:
    """All tensors of the kind. Together they are the whole body, without gaps or overlaps."""
    if unknown := sorted(header.keys() - specs.keys()):
        raise ArtifactError(f"unknown tensor {brief(unknown[0])}; known: {', '.join(specs)}")
    missing = [name for name, spec in specs.items() if spec.required and name not in header]
    if missing:
        raise ArtifactError(f"the tensor {brief(missing[0])} is missing")
    sizes: dict[str, int] = {}
    tensors: dict[str, NDArray[Any]] = {}
    ranges = []
    for name, entry in header.items():
        shape, start, end = _entry(name, entry, specs[name], sizes)
        ranges.append((start, end))
        if end - start != math.prod(shape) * 4 or end > len(body):
            raise ArtifactError(f"{name}: its offsets and its shape disagree, or the file is cut")
        values = np.frombuffer(body[start:end], DTYPES[specs[name].dtype]).reshape(shape).copy()
        values.setflags(write=False)
        tensors[name] = values
    reached = 0
    for start, end in sorted(ranges):
        if start != reached:
            raise ArtifactError("the tensors overlap, or leave a gap")
        reached = end
    if reached != len(body):
        raise ArtifactError("there are bytes behind the last tensor")
    return tensors


def _entry(
    name: str, entry: object, spec: TensorSpec, sizes: dict[str, int]
) -> tuple[tuple[int, ...], int, int]:
    """Shape and offsets of one tensor; named sizes are noted in ``sizes`` and compared."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"{name}: a tensor has dtype, shape and data_offsets")
    if entry["dtype"] != spec.dtype:
        raise ArtifactError(f"{name}: its type is {spec.dtype}, got {brief(str(entry['dtype']))}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_counts(shape, len(spec.dims)) or not _is_counts(offsets, 2):
        raise ArtifactError(f"{name}: its shape is {list(spec.dims)}, with two offsets")
    for dim, size in zip(spec.dims, shape, strict=True):
        expected = dim if isinstance(dim, int) else sizes.setdefault(dim, size)
        if size != expected or not size:
            raise ArtifactError(f"{name}: its shape is {list(spec.dims)}, got {shape}")
    if spec.dtype == "I32" and shape[0] > MOST_ENTRIES:
        raise ArtifactError(f"{name}: at most {MOST_ENTRIES} entries, got {shape[0]}")
    return tuple(shape), offsets[0], offsets[1]


def _is_counts(value: object, length: int) -> bool:
    """True for a list of so many numbers that could be sizes in a file of ours."""
    if not isinstance(value, list) or len(value) != length:
        return False
    return all(type(item) is int and 0 <= item <= MOST_BYTES for item in value)


def _check_below(values: NDArray[Any], limit: int, what: str) -> None:
    if values.max() >= limit:
        raise ArtifactError(f"there is no {what} {values.max()}; the model has {limit}, from 0")
