"""What is kept for later requests: bounded, never another's, and equal to what is made anew."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from saccade_interventions import units
from saccade_interventions.artifacts import Artifact, read_artifact, write_artifact
from saccade_interventions.edits import Vectors
from saccade_interventions.kept import Kept

FINGERPRINT = "sha256:" + "c" * 64


def artifact(kind: str, seed: int = 0, **more: Any) -> Artifact:
    vectors = np.random.default_rng(seed).normal(size=(5, 7))
    return read_artifact(write_artifact(kind, FINGERPRINT, {"vectors": vectors, **more}))


def numbered(seed: int = 0) -> Artifact:
    return artifact("vectors", seed, layers=np.array([3, 1, 0, 4, 2]))


def never() -> Any:
    raise AssertionError("it is held")


def test_the_last_used_are_held_within_the_budget() -> None:
    made: list[str] = []

    def make(name: str) -> Callable[[], bytes]:
        def run() -> bytes:
            made.append(name)
            return name.encode() * 10

        return run

    kept = Kept[bytes](30, len)
    for name in "abcadb":
        assert kept.get(name, make(name)) == name.encode() * 10
        assert kept._bytes == sum(map(len, kept._held.values())) <= 30
    assert made == [*"abcdb"], "a was used since b and is still there when d comes"
    assert kept.get("large", lambda: b"x" * 31) == b"x" * 31
    assert set(kept._held) == {"a", "d", "b"}, "what is too large drops nothing"


def test_what_could_not_be_made_is_tried_again() -> None:
    kept = Kept[bytes](10, len)

    def fails() -> bytes:
        raise ValueError("not now")

    with pytest.raises(ValueError, match="not now"):
        kept.get("a", fails)
    assert kept.get("a", lambda: b"1") == b"1"
    assert kept.get("a", never) == b"1"


def test_unit_vectors_are_those_of_the_rows_of_that_artifact() -> None:
    for _ in range(2):
        for seed in (0, 1):
            found = numbered(seed)
            for rows in ([0, 1, 2], [2, 1, 0], [2], [0, 1, 2, 3, 4]):
                wanted = found.tensors["vectors"][rows].astype(np.float64)
                lengths = np.linalg.norm(wanted, axis=1)
                made = units.units_of(found, rows)
                assert made.lengths == tuple(lengths.tolist())
                wanted = (wanted / lengths[:, None]).astype(np.float32)
                assert made.vectors == Vectors.pack(wanted)
    with pytest.raises(ValueError, match="read-only"):
        units.units_of(numbered(), [0]).vectors.unpack()[0] = 1


def test_shifts_are_those_of_artifact_unit_and_strength() -> None:
    heads = np.array([(0, head) for head in range(5)])
    found = [artifact("head_vectors", seed, heads=heads) for seed in (0, 1)]
    for _ in range(2):
        for one in found:
            for unit, factor in (("raw", 1.0), ("unit", 3.0)):
                directions = factor * one.tensors["vectors"].astype(np.float64)
                for alpha in (2.0, -0.3):
                    made = units.shifts_of(one, unit, alpha, lambda found=directions: found)
                    assert made == Vectors.pack((alpha * directions).astype(np.float32))
    again = units.shifts_of(found[1], "unit", -0.3, never)
    assert again == made
