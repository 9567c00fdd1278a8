"""An artifact of one vector, as a file."""

import hashlib

import numpy as np

from saccade_interventions.artifacts import write_artifact

ADMIN = {"authorization": "Bearer root"}
MODEL = "sha256:" + "ab" * 32


def vector(value: float = 1.0) -> bytes:
    tensors = {"vectors": np.full((1, 32), value, np.float32), "layers": np.array([2])}
    return write_artifact("vectors", MODEL, tensors)


def name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


DATA = vector()
NAME = name(DATA)
