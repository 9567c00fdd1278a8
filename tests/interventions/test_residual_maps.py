"""Sites, subspaces, maps of low rank, diagonal maps and bounds: published formulas, refusals."""

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
from saccade_interventions.phases import Phase
from saccade_interventions.registry import Registry
from saccade_kernels.residual import RESIDUAL_EDITS, SiteKind
from saccade_testing.plans import context_of, edited

FINGERPRINT = "sha256:" + "c" * 64
PROMPT = Prompt(12, images=((3, 6),))
RNG = np.random.default_rng(2)
SIZE, ROW = 64, Phase.LAST
STORE = {}


def stored(kind, defaults=None, **tensors):
    arrays = {name: np.asarray(values) for name, values in tensors.items()}
    data = write_artifact(kind, FINGERPRINT, arrays, defaults=defaults or {})
    artifact = read_artifact(data)
    STORE[artifact.digest] = artifact
    return artifact.digest


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32).astype(np.float64)


VECTORS = normal(3, SIZE)
SPAN = normal(5, SIZE)  # not orthogonal
READ, WRITE, SHIFT = normal(3, SIZE) / 8, normal(3, SIZE), normal(3)
SCALE, OFFSET = normal(2, SIZE), normal(2, SIZE)
PLAIN = stored("vectors", vectors=VECTORS, layers=[5, 0, 2])
AT_MLP = stored(
    "vectors",
    {"site": "mlp_output", "layers": [5], "coefficient": 0.25},
    vectors=VECTORS,
    layers=[5, 0, 2],
)
SUBSPACES = stored("subspaces", vectors=SPAN, layers=[3, 6, 3, 3, 3])
LOW_RANK = stored("low_rank", read=READ, write=WRITE, shift=SHIFT, layers=[4, 1, 4])
DIAGONAL = stored("diagonal", scale=SCALE, shift=OFFSET, layers=[2, 5])
LAST = stored("vectors", vectors=VECTORS[:2], layers=[6, 1])


@pytest.fixture
def context():
    made = context_of(PROMPT, fingerprint=FINGERPRINT)
    return replace(made, artifacts=STORE.get)


def refused(entry, context, registry):
    with pytest.raises(InterventionError) as caught:
        compile_plan(registry.parse([{"method": "steering", **entry}]), context)
    return caught.value


def close(found, wanted, atol=1e-5):
    torch.testing.assert_close(found, torch.as_tensor(wanted), rtol=1e-6, atol=atol)


@pytest.mark.parametrize("site", SiteKind, ids=lambda kind: kind.name)
def test_vectors_act_at_their_site_alone(context, hidden: torch.Tensor, site):
    plan = Steering(artifact=PLAIN, site=site.name.lower(), layers=[2, 5]).compile(context)
    assert [(edit.layer, edit.site) for edit in plan.residuals] == [(2, site), (5, site)]
    for kind in SiteKind:
        for layer in range(6):
            found = edited(plan, hidden, layer, ROW, kind)
            added = {2: VECTORS[2], 5: VECTORS[0]}.get(layer) if kind is site else None
            close(found, hidden if added is None else hidden + torch.from_numpy(added))


def test_vti(context, hidden: torch.Tensor):
    """m' = |m| norm(m / |m| + lambda d), d a unit vector: representation.md's first example."""
    m = torch.zeros(1, SIZE, dtype=torch.float64)
    m[0, 0], m[0, 2] = 3, 4
    d = np.zeros((1, SIZE))
    d[0, 1] = 2
    name, strength = stored("vectors", vectors=d, layers=[4]), 0.1 * 1.5
    plan = Steering(
        artifact=name,
        site="mlp_output",
        unit="rms",
        coefficient=strength * math.sqrt(SIZE),
        keep_norm=True,
        rows="prompt+generated",
    ).compile(context)
    found = edited(plan, m, 4, Phase.PREFIX, SiteKind.MLP_OUTPUT)[0]
    turned = np.array([0.6, strength, 0.8])
    close(found[:3], 5 * turned / np.linalg.norm(turned), 1e-6)
    assert not found[3:].any()


@pytest.mark.parametrize("coefficient", [1.0, 0.5, 2.0])
def test_a_subspace_is_projected_out(context, hidden: torch.Tensor, coefficient):
    """Nullu: m - V V^T m, for any vectors that span it."""
    plan = Steering(
        artifact=SUBSPACES, op="project_out", site="residual", coefficient=coefficient
    ).compile(context)
    span = torch.from_numpy(SPAN[[0, 2, 3, 4]])
    projected = hidden @ torch.linalg.pinv(span) @ span
    close(edited(plan, hidden, 3, ROW), hidden - coefficient * projected)
    one = torch.from_numpy(SPAN[1])
    along = (hidden @ one)[:, None] * one / (one @ one)
    close(edited(plan, hidden, 6, ROW), hidden - coefficient * along)


@pytest.mark.parametrize("coefficient", [1.0, -0.5])
@pytest.mark.parametrize("keep_norm", [False, True])
def test_a_map_of_low_rank(context, hidden: torch.Tensor, coefficient, keep_norm):
    plan = Steering(
        artifact=LOW_RANK, op="affine", coefficient=coefficient, keep_norm=keep_norm
    ).compile(context)
    for layer, rows in ((4, [0, 2]), (1, [1])):
        read, write, shift = (torch.from_numpy(x[rows]) for x in (READ, WRITE, SHIFT))
        wanted = hidden + coefficient * (hidden @ read.T + shift) @ write
        if keep_norm:
            wanted *= hidden.norm(dim=-1, keepdim=True) / wanted.norm(dim=-1, keepdim=True)
        close(edited(plan, hidden, layer, ROW), wanted)
    assert torch.equal(edited(plan, hidden, 3, ROW), hidden)


def test_loreft(context, hidden: torch.Tensor):
    """h + R^T (W h + b - R h), R with orthonormal rows."""
    R = np.linalg.qr(normal(SIZE, 4))[0].T
    W, b = normal(4, SIZE) / 8, normal(4)
    name = stored("low_rank", read=W - R, write=R, shift=b, layers=[2] * 4)
    plan = Steering(artifact=name, op="affine").compile(context)
    R, W, b = map(torch.from_numpy, (R, W, b))
    close(edited(plan, hidden, 2, ROW), hidden + (hidden @ W.T + b - hidden @ R.T) @ R)


@pytest.mark.parametrize("coefficient", [1.0, 0.25])
def test_a_diagonal_map(context, hidden: torch.Tensor, coefficient):
    plan = Steering(artifact=DIAGONAL, op="affine", coefficient=coefficient).compile(context)
    for row, layer in enumerate((2, 5)):
        scale, shift = torch.from_numpy(SCALE[row]), torch.from_numpy(OFFSET[row])
        mapped = scale * hidden + shift
        close(edited(plan, hidden, layer, ROW), hidden + coefficient * (mapped - hidden))


@pytest.mark.parametrize("parts", ["scale", "shift"])
def test_half_of_a_diagonal_map_is_one_edit(context, hidden: torch.Tensor, parts):
    scale = SCALE if parts == "scale" else np.ones_like(SCALE)
    tensors = {"scale": scale, "layers": [2, 5]} | ({} if parts == "scale" else {"shift": OFFSET})
    plan = Steering(artifact=stored("diagonal", **tensors), op="affine").compile(context)
    assert len(plan.residuals) == 2
    added = torch.from_numpy(OFFSET[1]) if parts == "shift" else 0.0
    close(edited(plan, hidden, 5, ROW), hidden * torch.from_numpy(scale[1]) + added)


@pytest.mark.parametrize("op", ["add", "piecewise", "project_out"])
def test_bounds_leave_rows_alone(context, hidden: torch.Tensor, op):
    both = {"artifact": PLAIN, "op": op, "layers": [2]}
    free = Steering(**both).compile(context)
    bound = Steering(**both, only_above=-0.5, only_below=0.75).compile(context)
    v = torch.from_numpy(VECTORS[2])
    part = hidden @ v / v.norm()
    inside = (part >= -0.5) & (part <= 0.75)
    assert inside.any()
    assert not inside.all()
    found = edited(bound, hidden, 2, ROW)
    assert torch.equal(found[inside], edited(free, hidden, 2, ROW)[inside])
    assert torch.equal(found[~inside], hidden[~inside])


@pytest.mark.parametrize("kind", ["subspaces", "low_rank", "diagonal"])
def test_neutral_maps_are_no_plan(kind, context, registry: Registry):
    artifact = {"subspaces": SUBSPACES, "low_rank": LOW_RANK, "diagonal": DIAGONAL}[kind]
    op = "project_out" if kind == "subspaces" else "affine"
    entry = {"method": "steering", "artifact": artifact, "op": op, "coefficient": 0}
    assert compile_plan(registry.parse([entry]), context) is None


@pytest.mark.parametrize(
    ("fields", "explicit"),
    [
        ({}, {"site": "mlp_output", "layers": [5], "coefficient": 0.25}),
        ({"site": "mlp_output", "coefficient": 2}, {"layers": [5], "coefficient": 2}),
        ({"site": "residual"}, {"layers": [0, 2, 5], "coefficient": 1}),
        ({"site": "attention_output", "layers": [0]}, {"coefficient": 1}),
    ],
)
def test_what_an_artifact_says_is_of_its_site(fields, explicit, context, registry: Registry):
    entry = {"method": "steering", "artifact": AT_MLP, **fields}
    (asked,), (spelled_out,) = registry.parse([entry]), registry.parse([entry | explicit])
    assert asked.resolved(context) == spelled_out.resolved(context) == spelled_out
    assert asked.compile(context) == spelled_out.compile(context)


def test_maps_have_defaults_too(context):
    name = stored(
        "subspaces", {"layers": [3], "coefficient": 0.5}, vectors=SPAN, layers=[3, 6, 3, 3, 3]
    )
    found = Steering(artifact=name, op="project_out").resolved(context)
    assert (found.site, found.layers, found.coefficient) == (None, [3], 0.5)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"artifact": PLAIN, "site": "head_output"}, "site", Code.INVALID_PARAMS),
        ({"artifact": PLAIN, "site": "mlp_output", "layers": [3]}, "layers[0]", None),
        ({"artifact": LAST, "site": "mlp_output"}, "site", None),
        ({"artifact": LAST, "site": "mlp_output", "layers": [6]}, "site", None),
        ({"artifact": SUBSPACES}, "artifact", Code.ARTIFACT_MISMATCH),
        ({"artifact": SUBSPACES, "op": "affine"}, "artifact", Code.ARTIFACT_MISMATCH),
        ({"artifact": PLAIN, "op": "affine"}, "artifact", Code.ARTIFACT_MISMATCH),
        ({"artifact": LOW_RANK, "op": "project_out"}, "artifact", Code.ARTIFACT_MISMATCH),
        ({"artifact": LOW_RANK, "op": "affine", "unit": "rms"}, "unit", Code.INVALID_PARAMS),
        ({"artifact": LOW_RANK, "op": "affine", "only_above": 0}, "only_above", None),
        ({"artifact": SUBSPACES, "op": "project_out", "only_below": 0}, "only_below", None),
        ({"artifact": PLAIN, "op": "clamp", "low": 0, "only_above": 0}, "only_above", None),
        ({"artifact": PLAIN, "only_above": 1, "only_below": 0}, "only_above", None),
        ({"artifact": PLAIN, "only_above": "1"}, "only_above", None),
    ],
)
def test_what_steering_refuses(fields, param, code, context, registry: Registry):
    error = refused(fields, context, registry)
    layered = param == "site" or param.startswith("layers")
    if code is None:
        code = Code.LAYER_OUT_OF_RANGE if layered else Code.INVALID_PARAMS
    assert (error.code, error.param) == (code, f"interventions[0].{param}")


@pytest.mark.parametrize(
    ("artifact", "fields", "place", "row", "coefficient"),
    [
        (LAST, {"layer": 0, "site": "mlp_output"}, (0, SiteKind.MLP_OUTPUT), 1, 1.0),
        (LAST, {"layer": 5, "site": "attention_output"}, (5, SiteKind.ATTENTION_OUTPUT), 0, 1.0),
        (LAST, {"layer": 0}, (1, SiteKind.RESIDUAL), 1, 1.0),
        (AT_MLP, {}, (5, SiteKind.MLP_OUTPUT), 0, 0.25),
        (AT_MLP, {"layer": 2}, (2, SiteKind.MLP_OUTPUT), 2, 0.25),
        (AT_MLP, {"site": "residual"}, (6, SiteKind.RESIDUAL), 0, 1.0),
    ],
)
def test_a_function_vector_at_a_site(context, artifact, fields, place, row, coefficient):
    asked = FunctionVector(artifact=artifact, **fields)
    (edit,) = asked.compile(context).residuals
    assert (edit.layer, edit.site) == place
    assert edit.shift == pytest.approx(coefficient * float(np.linalg.norm(VECTORS[row])))
    resolved = asked.resolved(context)
    assert None not in (resolved.layer, resolved.coefficient)
    assert resolved.compile(context) == asked.compile(context)


def test_residual_0_is_no_layers_output(context, registry: Registry):
    name = stored("vectors", vectors=VECTORS[:1], layers=[0])
    entry = {"method": "function_vector", "artifact": name, "site": "mlp_output"}
    error = refused(entry, context, registry)
    assert (error.code, error.param) == (Code.LAYER_OUT_OF_RANGE, "interventions[0].layer")


def test_maps_of_one_site_chain_in_order_and_have_so_much_room(
    context, registry: Registry, hidden: torch.Tensor
):
    wide = stored("subspaces", vectors=normal(12, SIZE), layers=[3] * 12)
    out = {"method": "steering", "artifact": SUBSPACES, "op": "project_out", "layers": [3]}
    large = {"method": "steering", "artifact": wide, "op": "project_out"}
    plan = compile_plan(registry.parse([out, large]), context)
    assert len(plan.residuals) == RESIDUAL_EDITS
    assert [edit.joined for edit in plan.residuals] == [False] + [True] * 3 + [False] + [True] * 11
    one, two = (compile_plan(registry.parse([entry]), context) for entry in (out, large))
    chained = edited(two, edited(one, hidden, 3, ROW), 3, ROW)
    close(edited(plan, hidden, 3, ROW), chained)
    others = {"method": "steering", "artifact": PLAIN, "rows": "question"}
    apart = {**large, "site": "mlp_output"}
    assert compile_plan(registry.parse([out, others, large, apart]), context)
    add = {"method": "function_vector", "artifact": LAST, "layer": 2}
    one = stored("vectors", vectors=VECTORS[:1], layers=[1])
    with pytest.raises(InterventionError, match="residual 3, last rows have more edits") as e:
        compile_plan(registry.parse([out, large, {**add, "artifact": one}]), context)
    assert (e.value.code, e.value.param) == (Code.CONFLICT, "interventions[2]")


def test_sites_and_maps_are_in_fingerprints(context):
    plans = [
        Steering(artifact=PLAIN).compile(context),
        Steering(artifact=PLAIN, site="mlp_output").compile(context),
        Steering(artifact=PLAIN, site="attention_output").compile(context),
        Steering(artifact=PLAIN, only_above=0).compile(context),
        Steering(artifact=PLAIN, only_below=0).compile(context),
        Steering(artifact=SUBSPACES, op="project_out").compile(context),
        Steering(artifact=LOW_RANK, op="affine").compile(context),
        Steering(artifact=DIAGONAL, op="affine").compile(context),
    ]
    assert len({plan.fingerprint() for plan in plans}) == len(plans)
