"""Steering methods as data: edits of residuals, worked examples, refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from saccade_interventions.artifacts import read_artifact, write_artifact
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.function_vector import FunctionVector
from saccade_interventions.methods.steering import Steering
from saccade_interventions.phases import Phase, parse_rows
from saccade_interventions.registry import Registry
from saccade_testing.plans import context_of, edited

FINGERPRINT = "sha256:" + "c" * 64
PROMPT = Prompt(12, images=((3, 6),))
RESIDUALS = (5, 0, 6)
VECTORS = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
MISSING = "sha256:" + "0" * 64
STORE = {}


def stored(residuals, vectors, **defaults):
    tensors = {"vectors": vectors, "layers": np.array(residuals)}
    artifact = read_artifact(write_artifact("vectors", FINGERPRINT, tensors, defaults=defaults))
    STORE[artifact.digest] = artifact
    return artifact.digest


SEVERAL = stored(RESIDUALS, VECTORS)
ONE = stored([2], VECTORS[:1])
ADVISED = stored(RESIDUALS, VECTORS, layers=[6], coefficient=0.25)
_heads = read_artifact(write_artifact("heads", FINGERPRINT, {"heads": np.array([[0, 0]])}))
STORE[_heads.digest] = _heads


@pytest.fixture
def context():
    made = context_of(PROMPT, fingerprint=FINGERPRINT)
    return replace(made, artifacts=STORE.get)


def refused(entry, context, registry):
    with pytest.raises(InterventionError) as caught:
        compile_plan(registry.parse([entry]), context)
    return caught.value


def test_each_vector_goes_to_its_own_residual(context, hidden: torch.Tensor):
    """CAA's worked example: 1.5 v moves the residual by 1.5 ||v|| along v, and nothing else."""
    plan = Steering(artifact=SEVERAL, coefficient=1.5).compile(context)
    assert [edit.layer for edit in plan.residuals] == [0, 5, 6]
    for residual in range(7):
        found = edited(plan, hidden, residual, Phase.GENERATED) - hidden
        if residual not in RESIDUALS:
            assert not found.any()
            continue
        v = torch.from_numpy(VECTORS[RESIDUALS.index(residual)]).double()
        torch.testing.assert_close(found, (1.5 * v).expand(7, -1), rtol=1e-6, atol=1e-6)
        length = float(found[0] @ v / v.norm())
        assert length == pytest.approx(1.5 * float(v.norm()), rel=1e-6)


def test_the_numeric_example(context):
    """CAA moves by 1.5 ||v|| = 3.069 along v; RepE's operators end at 3.013, or keep the norm."""
    rng = np.random.default_rng(5)
    p = rng.normal(size=(20, 8)) + 2 * np.eye(8)[0]
    v = (p - (p - 2 * np.eye(8)[0] + 0.1 * rng.normal(size=(20, 8)))).mean(0)
    h = rng.normal(size=8)
    unit, row = np.zeros(64), torch.zeros(1, 64, dtype=torch.float64)
    unit[:8], row[0, :8] = v / np.linalg.norm(v), torch.from_numpy(h)
    one = stored([2], np.pad(v, (0, 56))[None].astype(np.float32))

    def steered(coefficient, **fields):
        plan = Steering(artifact=one, coefficient=coefficient, **fields).compile(context)
        return edited(plan, row, 2, Phase.LAST)[0].numpy()

    assert (steered(1.5) - row[0].numpy()) @ unit == pytest.approx(3.069, abs=5e-4)
    assert steered(0.5) @ unit == pytest.approx(3.013, abs=5e-4)
    assert steered(0.5, op="piecewise") @ unit == pytest.approx(3.013, abs=5e-4)
    kept = steered(0.5, keep_norm=True)
    assert np.linalg.norm(kept) == pytest.approx(np.linalg.norm(h), rel=1e-6)


def test_rows_follow_the_instruction_unless_said_otherwise(context):
    phases = Steering(artifact=SEVERAL).compile(context).residuals[0].phases
    assert phases == (Phase.LAST, Phase.GENERATED)
    everywhere = Steering(artifact=SEVERAL, rows="prompt+generated").compile(context)
    assert everywhere.residuals[0].phases == tuple(Phase)


def test_a_strength_relative_to_the_residual(context, hidden: torch.Tensor):
    """alpha = 8 in units of the RMS is a change of 8 / sqrt(D) of the norm: 0.144 at D = 3072."""
    assert 8 / math.sqrt(3072) == pytest.approx(0.144, abs=5e-4)
    plan = Steering(artifact=ONE, coefficient=8, unit="rms").compile(context)
    found = edited(plan, 30 * hidden, 2, Phase.LAST) - 30 * hidden
    ratio = found.norm(dim=-1) / (30 * hidden).norm(dim=-1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 8 / math.sqrt(64)), rtol=1e-6, atol=0)


def test_piecewise_follows_the_sign_of_the_residuals_part(context, hidden: torch.Tensor):
    linear = Steering(artifact=ONE, coefficient=0.5).compile(context)
    signed = Steering(artifact=ONE, coefficient=0.5, op="piecewise").compile(context)
    v = torch.from_numpy(VECTORS[0]).double()
    hidden = torch.cat([hidden, -hidden])
    added = edited(linear, hidden, 2, Phase.LAST) - hidden
    found = edited(signed, hidden, 2, Phase.LAST) - hidden
    assert {1.0, -1.0} == set((hidden @ v).sign().tolist())
    torch.testing.assert_close(found, added * (hidden @ v).sign()[:, None])


@pytest.mark.parametrize("op", ["add", "piecewise", "project_out"])
def test_the_norm_is_kept(context, hidden: torch.Tensor, op):
    plan = Steering(artifact=ONE, coefficient=0.5, op=op, keep_norm=True).compile(context)
    found = edited(plan, hidden, 2, Phase.LAST)
    torch.testing.assert_close(found.norm(dim=-1), hidden.norm(dim=-1))
    assert not torch.isclose(found, hidden).all(-1).any()


def test_projecting_out_divides_by_the_square(context, hidden: torch.Tensor):
    """Whatever the stored length; twice is once; a coefficient of 2 reflects."""
    v = torch.from_numpy(VECTORS[0]).double()
    plan = Steering(artifact=stored([2], 40 * VECTORS[:1]), op="project_out").compile(context)
    found = edited(plan, hidden, 2, Phase.LAST)
    wanted = hidden - (hidden @ v)[:, None] * v / (v @ v)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(edited(plan, found, 2, Phase.LAST), found, rtol=0, atol=1e-6)
    reflect = Steering(artifact=ONE, op="project_out", coefficient=2).compile(context)
    there = edited(reflect, hidden, 2, Phase.LAST)
    torch.testing.assert_close(there @ v, -(hidden @ v), rtol=1e-5, atol=1e-5)


def test_clamping(context, hidden: torch.Tensor):
    plan = Steering(artifact=ONE, op="clamp", low=-0.5, high=0.25).compile(context)
    v = torch.from_numpy(VECTORS[0]).double()
    part = edited(plan, hidden, 2, Phase.LAST) @ (v / v.norm())
    wanted = (hidden @ (v / v.norm())).clamp(-0.5, 0.25)
    torch.testing.assert_close(part, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "entry",
    [
        {"method": "steering", "artifact": SEVERAL, "coefficient": 0},
        {"method": "steering", "artifact": SEVERAL, "coefficient": 0, "op": "project_out"},
        {"method": "steering", "artifact": SEVERAL, "coefficient": 0, "keep_norm": True},
        {"method": "function_vector", "artifact": ONE, "coefficient": 0},
    ],
)
def test_neutral_strengths_are_no_plan(entry, context, registry: Registry):
    assert compile_plan(registry.parse([entry]), context) is None


def test_layers_choose_vectors(context):
    plan = Steering(artifact=SEVERAL, layers=[6, 5]).compile(context)
    assert [edit.layer for edit in plan.residuals] == [5, 6]
    found = plan.vectors_of(plan.residuals[1].direction)[plan.residuals[1].row]
    np.testing.assert_allclose(found, VECTORS[2] / np.linalg.norm(VECTORS[2]), rtol=1e-6)
    one = Steering(artifact=SEVERAL, layers=[6, 5])
    assert one.fingerprint() == Steering(artifact=SEVERAL, layers=[5, 6]).fingerprint()


@pytest.mark.parametrize(
    ("fields", "explicit"),
    [
        ({}, {"layers": [6], "coefficient": 0.25}),
        ({"coefficient": 3}, {"layers": [6], "coefficient": 3}),
        ({"layers": [0, 5]}, {"layers": [0, 5], "coefficient": 0.25}),
        ({"unit": "rms"}, {"layers": [6], "coefficient": 1}),
        ({"unit": "unit"}, {"layers": [6], "coefficient": 1}),
        ({"op": "piecewise"}, {"layers": [6], "coefficient": 1}),
        ({"op": "project_out"}, {"layers": [6], "coefficient": 1}),
        ({"op": "clamp", "low": 0}, {"layers": [6]}),
        ({"rows": "prompt"}, {"layers": [6], "coefficient": 0.25}),
    ],
)
def test_what_a_request_leaves_out_is_the_artifacts(fields, explicit, context, registry: Registry):
    """The layers for any op; the strength only for what it was found for."""
    entry = {"method": "steering", "artifact": ADVISED, **fields}
    (asked,) = registry.parse([entry])
    (spelled_out,) = registry.parse([entry | explicit])
    assert asked.compile(context) == spelled_out.compile(context)
    assert asked.resolved(context).normalised() == spelled_out.normalised()
    assert spelled_out.resolved(context) == spelled_out


def test_an_artifact_without_defaults_is_used_whole_at_1(context):
    resolved = Steering(artifact=SEVERAL).resolved(context)
    assert (resolved.layers, resolved.coefficient) == ([0, 5, 6], 1.0)
    explicit = Steering(artifact=SEVERAL, layers=[0, 5, 6], coefficient=1).compile(context)
    assert Steering(artifact=SEVERAL).compile(context) == explicit


@pytest.mark.parametrize(
    ("artifact", "fields", "layer", "coefficient"),
    [
        (ADVISED, {}, 5, 0.25),
        (ADVISED, {"coefficient": 2}, 5, 2),
        (ADVISED, {"layer": 4}, 4, 0.25),
        (ONE, {}, 1, 1),
        (stored([0], VECTORS[:1], coefficient=-2), {}, None, -2),
    ],
)
def test_a_function_vector_follows_its_artifact(context, artifact, fields, layer, coefficient):
    asked = FunctionVector(artifact=artifact, **fields)
    resolved = asked.resolved(context)
    assert (resolved.layer, resolved.coefficient) == (layer, coefficient)
    assert resolved.compile(context) == asked.compile(context)
    (edit,) = asked.compile(context).residuals
    assert edit.layer == (0 if layer is None else layer + 1)
    row = {0: 0, 2: 0, 5: 0, 6: 2}[edit.layer]
    assert edit.shift == pytest.approx(coefficient * float(np.linalg.norm(VECTORS[row])))


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"artifact": MISSING}, "artifact", Code.ARTIFACT_NOT_FOUND),
        ({"artifact": _heads.digest}, "artifact", Code.ARTIFACT_MISMATCH),
        ({"artifact": "me.safetensors"}, "artifact", Code.INVALID_PARAMS),
        ({"artifact": None}, "artifact", Code.INVALID_PARAMS),
        ({"layers": [0, 3]}, "layers[1]", Code.LAYER_OUT_OF_RANGE),
        ({"layers": [-1]}, "layers[0]", Code.LAYER_OUT_OF_RANGE),
        ({"coefficient": 1e9}, "coefficient", Code.INVALID_PARAMS),
        ({"coefficient": -101, "unit": "rms"}, "coefficient", Code.INVALID_PARAMS),
        ({"op": "project_out", "coefficient": 2.1}, "coefficient", Code.INVALID_PARAMS),
        ({"op": "project_out", "coefficient": -0.1}, "coefficient", Code.INVALID_PARAMS),
        ({"op": "subtract"}, "op", Code.INVALID_PARAMS),
        ({"op": "clamp"}, "low", Code.INVALID_PARAMS),
        ({"op": "clamp", "low": 1, "high": 0}, "low", Code.INVALID_PARAMS),
        ({"op": "clamp", "low": 1, "coefficient": 2}, "coefficient", Code.INVALID_PARAMS),
        ({"low": 1}, "low", Code.INVALID_PARAMS),
        ({"op": "project_out", "unit": "rms"}, "unit", Code.INVALID_PARAMS),
        ({"rows": "all"}, "rows", Code.INVALID_PARAMS),
        ({"heads": [0]}, "heads", Code.UNKNOWN_FIELD),
    ],
)
def test_what_steering_refuses(fields, param, code, context, registry: Registry):
    error = refused({"method": "steering", "artifact": SEVERAL, **fields}, context, registry)
    assert (error.code, error.param) == (code, f"interventions[0].{param}")


def test_an_artifact_is_required(context, registry: Registry):
    error = refused({"method": "steering"}, context, registry)
    assert (error.code, error.param) == (Code.INVALID_PARAMS, "interventions[0].artifact")


def test_another_models_artifact(registry: Registry):
    context = replace(context_of(PROMPT, fingerprint=MISSING), artifacts=STORE.get)
    error = refused({"method": "steering", "artifact": SEVERAL}, context, registry)
    assert error.code is Code.ARTIFACT_MISMATCH
    assert "another model" in error.message


@pytest.mark.parametrize(
    ("artifact", "layer", "residual", "row"),
    [(ONE, None, 2, 0), (ONE, 0, 1, 0), (ONE, 5, 6, 0), (SEVERAL, 4, 5, 0), (SEVERAL, 5, 6, 2)],
)
def test_a_function_vector_is_added_at_a_layers_output(
    context, hidden: torch.Tensor, artifact, layer, residual, row
):
    plan = FunctionVector(artifact=artifact, layer=layer).compile(context)
    (edit,) = plan.residuals
    assert (edit.layer, edit.phases) == (residual, parse_rows("last+generated"))
    found = edited(plan, hidden, residual, Phase.LAST) - hidden
    v = torch.from_numpy(VECTORS[row]).double()
    torch.testing.assert_close(found, v.expand(7, -1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"artifact": ONE, "layer": 6}, Code.LAYER_OUT_OF_RANGE),
        ({"artifact": SEVERAL, "layer": 2}, Code.LAYER_OUT_OF_RANGE),
        ({"artifact": SEVERAL}, Code.INVALID_PARAMS),
    ],
)
def test_where_a_function_vector_cannot_go(fields, code, context, registry: Registry):
    error = refused({"method": "function_vector", **fields}, context, registry)
    assert (error.code, error.param) == (code, "interventions[0].layer")


def test_edits_of_one_residual_chain_in_the_order_of_the_request(
    context, registry: Registry, hidden: torch.Tensor
):
    add = {"method": "function_vector", "artifact": ONE, "layer": 4}
    out = {"method": "steering", "artifact": SEVERAL, "op": "project_out", "layers": [5]}
    first = compile_plan(registry.parse([add, out]), context)
    second = compile_plan(registry.parse([out, add]), context)
    assert [edit.source for edit in first.residuals] == [0, 1]
    v = torch.from_numpy(VECTORS[0]).double()
    for plan, wanted in ((first, 0.0), (second, float(v.norm()))):
        part = edited(plan, hidden, 5, Phase.LAST) @ (v / v.norm())
        torch.testing.assert_close(part, torch.full_like(part, wanted), rtol=0, atol=1e-5)
    assert first.fingerprint() != second.fingerprint()


def test_programs_know_their_residual_edits(context):
    """Rows with other vectors, strengths or residuals never share a program or a page."""
    plans = [
        Steering(artifact=SEVERAL).compile(context),
        Steering(artifact=SEVERAL, coefficient=2).compile(context),
        Steering(artifact=SEVERAL, layers=[0]).compile(context),
        Steering(artifact=SEVERAL, op="clamp", low=0).compile(context),
        Steering(artifact=SEVERAL, op="clamp", high=0).compile(context),
        Steering(artifact=stored(RESIDUALS, VECTORS[::-1])).compile(context),
    ]
    assert len({plan.program_key(Phase.LAST) for plan in plans}) == len(plans)
    assert {plan.program_key(Phase.QUESTION) for plan in plans} == {None}
