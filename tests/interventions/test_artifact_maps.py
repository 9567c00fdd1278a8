"""Artifacts of subspaces and maps: numbers that mean nothing are refused."""

from dataclasses import replace

import numpy as np
import pytest

from saccade_interventions.artifacts import (
    ArtifactError,
    check_for,
    read_artifact,
    write_artifact,
)
from saccade_interventions.model_facts import ModelFacts

MODEL = "sha256:" + "a" * 64
FACTS = ModelFacts(layers=6, heads=4, kv_heads=2, head_dim=8, hidden_size=64, fingerprint=MODEL)
RNG = np.random.default_rng(0)
ONE = np.ones((1, 8))
GOOD = {"vectors": RNG.normal(size=(3, 64)), "layers": np.array([2, 6, 0])}


def filled(count, layers=None):
    return {"layers": np.arange(count) if layers is None else np.array(layers)}


@pytest.mark.parametrize(
    ("kind", "tensors", "message"),
    [
        ("subspaces", {"vectors": np.eye(17, 64)} | filled(17, [2] * 17), "occurs 17 times"),
        ("subspaces", {"vectors": np.ones((2, 64))} | filled(2, [1, 1]), "of layer 1 depend"),
        ("subspaces", {"vectors": np.ones((3, 2))} | filled(3, [1, 1, 1]), "depend"),
        ("subspaces", {"vectors": 0 * ONE} | filled(1), "vector 0 is zero"),
        ("subspaces", {"vectors": ONE} | filled(1, [-1]), "negative"),
        ("low_rank", {"read": ONE} | filled(1), "missing"),
        (
            "low_rank",
            {"read": 0 * ONE, "write": ONE} | filled(1),
            r"read.*zero",
        ),
        (
            "low_rank",
            {"read": ONE, "write": 0 * ONE} | filled(1),
            "write.*zero",
        ),
        ("low_rank", {"read": ONE, "write": np.ones((1, 9))} | filled(1), "shape"),
        ("low_rank", {"read": ONE, "write": np.ones((2, 8))} | filled(1), "shape"),
        (
            "low_rank",
            {"read": np.eye(17, 64), "write": np.eye(17, 64)} | filled(17, [0] * 17),
            "occurs 17 times",
        ),
        (
            "low_rank",
            {"read": ONE, "write": ONE, "shift": np.full(1, np.nan)} | filled(1),
            "shift: a value is not finite",
        ),
        ("diagonal", {"scale": ONE} | filled(1), "entry 0 changes nothing"),
        (
            "diagonal",
            {"scale": ONE, "shift": 0 * ONE} | filled(1),
            "entry 0 changes nothing",
        ),
        ("diagonal", {"scale": np.zeros((2, 8))} | filled(2, [3, 3]), "twice"),
        ("diagonal", {"scale": np.full((1, 8), 2e9)} | filled(1), "above"),
    ],
)
def test_bad_maps(kind, tensors, message):
    with pytest.raises(ArtifactError, match=message):
        write_artifact(kind, MODEL, tensors)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": np.array([0.5, 0.4])}, "add up to 1"),
        ({"weights": np.array([1.5, -0.5])}, "above 0"),
        ({"scale": np.array([1.0, 0, 1])}, "scale"),
        ({"covariances": np.array([np.eye(3), -np.eye(3)])}, "positive definite"),
        ({"covariances": np.array([np.eye(3), np.ones((3, 3))])}, "positive definite"),
        ({"covariances": np.array([np.eye(3), np.eye(3) + np.eye(3, k=1) / 9])}, "symmetric"),
        ({"means": np.zeros((2, 2))}, "shape"),
        ({"means": np.zeros((3, 3))}, "n"),
        ({"means": np.full((2, 3), np.inf)}, "finite"),
    ],
)
def test_bad_densities(changed, message):
    good = {
        "weights": np.array([0.5, 0.5]),
        "means": np.zeros((2, 3)),
        "covariances": np.array([np.eye(3)] * 2),
        "center": np.zeros(3),
        "scale": np.ones(3),
    }
    read_artifact(write_artifact("density", MODEL, good))
    with pytest.raises(ArtifactError, match=message):
        write_artifact("density", MODEL, good | changed)


def test_nearly_dependent_vectors_are_found_in_any_layer():
    """Each rank is checked in all its layers at once."""
    vectors = RNG.normal(size=(40, 64))
    layers = np.repeat(np.arange(10), 4)
    read_artifact(write_artifact("subspaces", MODEL, {"vectors": vectors, "layers": layers}))
    vectors[31] = 3 * vectors[28] - vectors[29] + 1e-6 * vectors[31]
    with pytest.raises(ArtifactError, match="of layer 7 depend"):
        write_artifact("subspaces", MODEL, {"vectors": vectors, "layers": layers})


def test_layers_are_those_of_the_site_that_the_defaults_name():
    defaults = {"site": "mlp_output"}
    artifact = read_artifact(write_artifact("vectors", MODEL, GOOD, defaults=defaults))
    with pytest.raises(ArtifactError, match="no layer 6; the model has 6"):
        check_for(artifact, FACTS)
    check_for(artifact, replace(FACTS, layers=7))
