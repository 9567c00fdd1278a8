"""Scaling, ablating and steering heads: programs, worked examples, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saccade_interventions.artifacts import read_artifact, write_artifact
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.headlists import by_site
from saccade_interventions.methods.head_ablation import HeadAblation
from saccade_interventions.methods.head_scale import HeadScale
from saccade_interventions.methods.head_steering import HeadSteering
from saccade_interventions.phases import Phase
from saccade_interventions.registry import Registry
from saccade_testing.plans import attend, context_of

FINGERPRINT = "sha256:" + "c" * 64
PROMPT = Prompt(9, images=((3, 6),))
MISSING = "sha256:" + "0" * 64
PAIRS = [[4, 3], [0, 2], [4, 1]]
RNG = np.random.default_rng(2)
VECTORS = RNG.normal(size=(3, 8)).astype(np.float32)
SIGMA = np.array([0.7, 2.0, 1.0], np.float32)
MEANS = RNG.normal(size=(6, 4, 8)).astype(np.float32)
STORE = {}


def stored(kind, defaults=(), **tensors):
    arrays = {name: np.asarray(values) for name, values in tensors.items()}
    artifact = read_artifact(write_artifact(kind, FINGERPRINT, arrays, defaults=dict(defaults)))
    STORE[artifact.digest] = artifact
    return artifact.digest


LISTED = stored("heads", heads=PAIRS)
TRUTH = stored("head_vectors", heads=PAIRS, vectors=VECTORS, sigma=SIGMA)
BARE = stored("head_vectors", heads=PAIRS, vectors=VECTORS)
AVERAGE = stored("head_means", means=MEANS)


@pytest.fixture
def context():
    return replace(context_of(PROMPT, fingerprint=FINGERPRINT), artifacts=STORE.get)


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_heads_are_sorted_into_sites():
    sites, order = by_site(np.array(PAIRS))
    assert sites == ((0, (2,)), (4, (1, 3)))
    assert order.tolist() == [1, 2, 0]


def test_scaling_weighs_columns_of_the_projection(context):
    """Gains (1, 0, 1.7): g z through W_o is W_o with its columns scaled, in float64."""
    z, W_o = torch.randn(5, 4, 8).double(), torch.randn(12, 4, 8).double()
    gain = np.array([1.0, 0.0, 1.7, 1.0])
    entries = [HeadScale(gain=0, heads={"4": [1]}), HeadScale(gain=1.7, heads={"4": [2]})]
    program = compile_plan(entries, context).program(Phase.GENERATED)
    np.testing.assert_allclose(program.gain[4], gain, rtol=1e-6)
    assert (np.delete(program.gain, 4, axis=0) == 1).all()
    scaled = torch.from_numpy(gain)[:, None]
    ours = torch.einsum("dhx,thx->td", W_o, z * scaled)
    parts = torch.einsum("dhx,thx->htd", W_o, z)
    torch.testing.assert_close(ours, (parts * scaled[:, :, None]).sum(0), rtol=0, atol=1e-13)
    assert not program.shift.any()


def test_gains_of_one_head_multiply(context):
    entries = [HeadScale(gain=2, layers=[1]), HeadScale(gain=-1.5, heads={"1": [3]})]
    program = compile_plan(entries, context).program(Phase.PREFIX)
    assert program.gain[1].tolist() == [2, 2, 2, -3]


def test_zero_and_mean_ablation(context):
    zero = HeadAblation(artifact=LISTED).compile(context).program(Phase.LAST)
    mean = HeadAblation(artifact=LISTED, mode="mean", means=AVERAGE).compile(context)
    mean = mean.program(Phase.LAST)
    for layer in range(6):
        for head in range(4):
            listed = [layer, head] in PAIRS
            assert zero.gain[layer, head] == mean.gain[layer, head] == (0 if listed else 1)
            wanted = MEANS[layer, head] if listed else np.zeros(8)
            np.testing.assert_array_equal(mean.shift[layer, head], wanted)
    assert not zero.shift.any()


def test_uniform_ablation_weighs_all_visible_keys_alike(context):
    plan = HeadAblation(mode="uniform", heads={"2": [1]}, rows="generated").compile(context)
    scores = 3 * torch.randn(4, 12, 12)
    found, plain = attend(plan, scores), attend(None, scores)
    uniform = torch.ones(12, 12).tril().double()
    uniform /= uniform.sum(-1, keepdim=True)
    torch.testing.assert_close(found[1, 9:], uniform[9:], rtol=0, atol=1e-15)
    assert torch.equal(found[1, :9], plain[1, :9])
    assert torch.equal(found[[0, 2, 3]], plain[[0, 2, 3]])


@pytest.mark.parametrize(
    ("fields", "direction"),
    [
        ({"artifact": TRUTH, "alpha": 15}, lambda i: 15 * SIGMA[i] * unit(VECTORS[i])),
        ({"artifact": BARE, "alpha": -3, "unit": "unit"}, lambda i: -3 * unit(VECTORS[i])),
        ({"artifact": TRUTH, "alpha": 0.8, "unit": "raw"}, lambda i: 0.8 * VECTORS[i]),
    ],
)
def test_steering_shifts_its_heads(context, fields, direction):
    """ITI: alpha sigma theta; emotion circuits: s Delta. The last row of each pass only."""
    plan = HeadSteering(**fields).compile(context)
    assert plan.program_key(Phase.QUESTION) is None
    for phase in (Phase.LAST, Phase.GENERATED):
        program = plan.program(phase)
        assert (program.gain == 1).all()
        for layer in range(6):
            for head in range(4):
                pair = [layer, head]
                wanted = direction(PAIRS.index(pair)) if pair in PAIRS else np.zeros(8)
                np.testing.assert_allclose(program.shift[layer, head], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "alpha"),
    [({}, 2.5), ({"alpha": -1}, -1), ({"unit": "unit"}, 15), ({"unit": "raw"}, 15)],
)
def test_alpha_is_the_artifacts_where_it_has_one(context, fields, alpha):
    """In standard deviations, in which it was found; elsewhere the paper's."""
    tensors = {"heads": PAIRS, "vectors": VECTORS, "sigma": SIGMA}
    advised = stored("head_vectors", defaults={"alpha": 2.5}, **tensors)
    asked = HeadSteering(artifact=advised, **fields)
    explicit = HeadSteering(artifact=advised, **{**fields, "alpha": alpha})
    assert asked.compile(context) == explicit.compile(context)
    assert asked.resolved(context) == explicit
    assert HeadSteering(artifact=TRUTH).resolved(context).alpha == 15


def test_a_later_gain_scales_an_earlier_shift(context):
    steer = HeadSteering(artifact=TRUTH, rows="last")
    scale = HeadScale(gain=3, artifact=LISTED, rows="last")
    shift = 15 * SIGMA[0] * unit(VECTORS[0])
    for order, wanted in (([steer, scale], 3 * shift), ([scale, steer], shift)):
        program = compile_plan(order, context).program(Phase.LAST)
        np.testing.assert_allclose(program.shift[4, 3], wanted, rtol=1e-5)
        assert program.gain[4, 3] == 3


@pytest.mark.parametrize(
    "entry",
    [
        {"method": "head_scale", "gain": 1, "layers": [0, 1]},
        {"method": "head_steering", "artifact": TRUTH, "alpha": 0},
        {
            "method": "head_steering",
            "artifact": stored("head_vectors", heads=PAIRS, vectors=VECTORS, sigma=0 * SIGMA),
        },
    ],
)
def test_neutral_strengths_are_no_plan(entry, context, registry: Registry):
    assert compile_plan(registry.parse([entry]), context) is None


HEADS = {"0": [1]}


@pytest.mark.parametrize(
    ("entry", "param", "code"),
    [
        ({"method": "head_scale", "heads": HEADS}, "gain", Code.INVALID_PARAMS),
        ({"method": "head_scale", "gain": 2}, "heads", Code.INVALID_PARAMS),
        ({"method": "head_scale", "gain": 17, "heads": HEADS}, "gain", Code.INVALID_PARAMS),
        (
            {"method": "head_scale", "gain": 2, "heads": HEADS, "artifact": LISTED},
            "artifact",
            Code.INVALID_PARAMS,
        ),
        (
            {"method": "head_scale", "gain": 2, "artifact": MISSING},
            "artifact",
            Code.ARTIFACT_NOT_FOUND,
        ),
        (
            {"method": "head_scale", "gain": 2, "artifact": TRUTH},
            "artifact",
            Code.ARTIFACT_MISMATCH,
        ),
        (
            {"method": "head_scale", "gain": 2, "heads": {"0": [4]}},
            'heads["0"][0]',
            Code.HEAD_OUT_OF_RANGE,
        ),
        ({"method": "head_scale", "gain": 2, "layers": [6]}, "layers[0]", Code.LAYER_OUT_OF_RANGE),
        ({"method": "head_ablation"}, "heads", Code.INVALID_PARAMS),
        ({"method": "head_ablation", "heads": HEADS, "mode": "mean"}, "means", Code.INVALID_PARAMS),
        (
            {"method": "head_ablation", "heads": HEADS, "means": AVERAGE},
            "means",
            Code.INVALID_PARAMS,
        ),
        (
            {"method": "head_ablation", "heads": HEADS, "mode": "mean", "means": LISTED},
            "means",
            Code.ARTIFACT_MISMATCH,
        ),
        (
            {"method": "head_ablation", "heads": HEADS, "mode": "resample"},
            "mode",
            Code.INVALID_PARAMS,
        ),
        ({"method": "head_steering"}, "artifact", Code.INVALID_PARAMS),
        ({"method": "head_steering", "artifact": BARE}, "unit", Code.ARTIFACT_MISMATCH),
        ({"method": "head_steering", "artifact": LISTED}, "artifact", Code.ARTIFACT_MISMATCH),
        (
            {"method": "head_steering", "artifact": TRUTH, "alpha": 1e4},
            "alpha",
            Code.INVALID_PARAMS,
        ),
    ],
)
def test_refusals(entry, param, code, context, registry: Registry):
    with pytest.raises(InterventionError) as caught:
        compile_plan(registry.parse([entry]), context)
    assert (caught.value.code, caught.value.param) == (code, f"interventions[0].{param}")


@pytest.mark.parametrize(
    "method", ["steering", "function_vector", "head_steering", "head_scale", "head_ablation"]
)
def test_probes_act_and_describe_themselves(registry: Registry, method):
    """What the self-test asks for compiles; the neutral fields over it are no plan."""
    kind = registry.methods[method]
    model = context_of(PROMPT, fingerprint=FINGERPRINT).model
    probe = kind.probe(model)
    artifact = read_artifact(probe.artifact) if probe.artifact else None
    store = {artifact.digest: artifact}.get if artifact else None
    context = replace(context_of(PROMPT, fingerprint=FINGERPRINT), artifacts=store)
    assert compile_plan(registry.parse([probe.entry]), context)
    assert (artifact is not None) == kind.needs_artifact
    if kind.neutral is not None:
        assert compile_plan(registry.parse([probe.entry | kind.neutral]), context) is None
    about = registry.describe(method)
    assert about["rows"] in ("last+generated", "prompt+generated")
    properties = about["schema"]["properties"]
    assert all(field.get("description") for name, field in properties.items() if name != "method")
    assert registry.parse([about["example"]])
