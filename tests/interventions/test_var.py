"""VAR: the published function's own output, the paper's formula written out, and the edges."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from saccade_interventions.artifacts import read_artifact, write_artifact
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.var import VAR
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import Phase
from saccade_interventions.rules import SinkRule
from saccade_kernels.thresholds import default_threshold
from saccade_testing.plans import attend, context_of, residual_with

GOLDEN = Path(__file__).parent / "golden"


def var_row(row, image, sinks, p=0.4, rho=0.5, s=0.2, require=True):
    """The paper's formula for one attention row, key by key."""
    keys = range(len(row))
    visual = {j for j in keys if any(a <= j < b for a, b in image)}
    if require and not visual & set(sinks):
        return row
    m_vs = sum(row[j] for j in visual if j in sinks)
    m_vn = sum(row[j] for j in visual if j not in sinks)
    m_ts = sum(row[j] for j in sinks if j not in visual)
    if m_vs + m_vn < s or m_vs > (1 - rho) * (m_vs + m_vn):
        return row
    budget = p * (m_vs + m_ts)
    factor = {j: 1 - p if j in sinks else 1 + budget / m_vn if j in visual else 1 for j in keys}
    return np.array([row[j] * factor[j] for j in keys])


def expected(attention, prompt, sinks, rows="question+generated", **settings):
    """``attention`` [heads, keys, keys] with the formula applied to the rows it should be."""
    images = settings.pop("image", prompt.images)
    first = {"question+generated": prompt.question_start, "generated": prompt.length}[rows]
    result = attention.numpy().copy()
    for head in range(result.shape[0]):
        for query in range(first, result.shape[1]):
            result[head, query] = var_row(result[head, query], images, sinks, **settings)
    return torch.from_numpy(result)


@pytest.mark.parametrize(
    ("p", "rho", "after"),
    [
        (0.6, 0.4, [0.16, 0.08, 0.42, 0.14, 0.12, 0.08]),
        (0.4, 0.4, [0.24, 0.12, 0.33, 0.11, 0.12, 0.08]),
        (0.6, 0.8, [0.40, 0.20, 0.15, 0.05, 0.12, 0.08]),
    ],
)
def test_the_worked_example(p, rho, after):
    row = torch.tensor([0.40, 0.20, 0.15, 0.05, 0.12, 0.08], dtype=torch.float64)
    context = context_of(Prompt(6, images=((1, 4),)))
    plan = VAR(move_fraction=p, rho=rho).compile(context)
    edited = attend(plan, row.log().expand(4, 6, 6), hidden=residual_with(6, [0, 1]))
    torch.testing.assert_close(edited[0, 5], torch.tensor(after).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("exact", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["var_prefill", "var_prefill_novisualsink"])
def test_the_published_functions_agree(name, exact):
    arrays = np.load(GOLDEN / f"{name}.npz")
    hyper = json.loads((GOLDEN / f"{name}.json").read_text())["hyper"]
    before, after = (torch.from_numpy(arrays[k][0]) for k in ("attn_in", "attn_out"))
    heads, keys = before.shape[:2]
    method = VAR(
        move_fraction=hyper["p_paper_moved"],
        rho=hyper["rho_paper_equiv"],
        min_visual_mass=hyper["summ"],
        tau=hyper["tau"],
        sink_dims=hyper["sink_dims"],
    )
    layer = hyper["layer_index"]
    facts = ModelFacts(layers=6, heads=heads, kv_heads=heads, head_dim=8, hidden_size=64)
    prompt = Prompt(keys, images=((hyper["image_start"], hyper["image_end"]),))
    plan = method.compile(Context(facts, prompt))
    hidden = torch.from_numpy(arrays["hidden"][0])
    edited = attend(plan, before.log(), layer=layer, hidden=hidden, exact=exact)
    tolerance = 1e-14 if exact else 1e-6
    torch.testing.assert_close(edited, after, rtol=0, atol=tolerance)
    changed = (after != before).any(-1)
    assert changed.any() == (name == "var_prefill")
    assert torch.equal(((edited - before).abs() > 1e-4).any(-1), changed)


CASES = {
    "usual": ([(3, 9)], [0, 4, 11], {}),
    "no sinks": ([(3, 9)], [], {}),
    "text sinks only": ([(3, 9)], [0, 10], {}),
    "text sinks only, moved": ([(3, 9)], [0, 10], {"require_visual_sink": False}),
    "all of the image": ([(3, 9)], [0, *range(3, 9)], {}),
    "all of the image, moved": ([(3, 9)], [0, *range(3, 9)], {"require_visual_sink": False}),
    "two images": ([(1, 4), (6, 9)], [0, 2, 8], {}),
    "first of two": ([(1, 4), (6, 9)], [0, 2, 8], {"image_index": 0}),
    "second of two": ([(1, 4), (6, 9)], [0, 2, 8], {"image_index": 1}),
    "an unseen sink": ([(1, 4), (6, 9)], [8], {"image_index": 0}),
    "sinks in generated": ([(3, 9)], [0, 4, 14], {"sinks_in_generated": True}),
    "generated are no sinks": ([(3, 9)], [0, 4, 14], {}),
    "generated rows": ([(3, 9)], [0, 4, 11], {"rows": "generated"}),
    "all moves": ([(3, 9)], [0, 4, 11], {"move_fraction": 1.0}),
    "only without sinks": ([(3, 9)], [0, 4, 11], {"rho": 1.0}),
    "any share": ([(3, 9)], [0, 4, 11], {"rho": 0.125, "min_visual_mass": 0.015625}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_formula_written_out(case):
    images, sinks, options = CASES[case]
    prompt = Prompt(12, images=tuple(images))
    settings = {"move_fraction": 0.25, "min_visual_mass": 0.25, **options}
    plan = VAR(**settings).compile(context_of(prompt))
    scores = 2 * torch.randn(4, 16, 16, dtype=torch.float64)
    before = attend(None, scores)
    edited = attend(plan, scores, hidden=residual_with(16, sinks), exact=True)
    index = settings.get("image_index")
    after = expected(
        before,
        prompt,
        [j for j in sinks if j < 12 or settings.get("sinks_in_generated")],
        rows=settings.get("rows", "question+generated"),
        image=images if index is None else [images[index]],
        p=settings["move_fraction"],
        rho=settings.get("rho", 0.5),
        s=settings["min_visual_mass"],
        require=settings.get("require_visual_sink", True),
    )
    torch.testing.assert_close(edited, after, rtol=0, atol=1e-14)


def test_a_tie_is_selected():
    """Both gates hold with equality: half of a quarter of the attention is on the sink."""
    row = torch.tensor([0.5, 0.125, 0.125, 0.25], dtype=torch.float64)
    plan = VAR(move_fraction=0.5, rho=0.5, min_visual_mass=0.25).compile(
        context_of(Prompt(4, images=((1, 3),)))
    )
    # A softmax could miss the tie by a rounding.
    edited = attend(plan, row.expand(4, 4, 4), hidden=residual_with(4, [1]), softmax=False)
    assert edited[0, 3].tolist() == [0.5, 0.0625, 0.1875, 0.25]


def test_only_named_layers_and_heads():
    prompt = Prompt(12, images=((3, 9),))
    plan = VAR(heads={"3": [1, 2]}).compile(context_of(prompt))
    scores = torch.randn(4, 14, 14)
    before = attend(None, scores)
    hidden = residual_with(14, [0, 4])
    assert torch.equal(attend(plan, scores, layer=2, hidden=hidden), before)
    edited = attend(plan, scores, layer=3, hidden=hidden)
    assert torch.equal(edited[[0, 3]], before[[0, 3]])
    assert (edited[[1, 2]] != before[[1, 2]]).any()
    assert plan.rule(SinkRule).layers == (3,)


@pytest.mark.parametrize(
    ("layers", "include_last", "chosen"),
    [(32, False, range(2, 31)), (32, True, range(2, 32)), (4, False, [2]), (3, False, range(3))],
)
def test_default_layers(layers, include_last, chosen):
    context = context_of(Prompt(6, images=((1, 4),)), layers=layers)
    sites = VAR(include_last_layer=include_last).sites(context)
    assert [layer for layer, _ in sites] == list(chosen)


def test_threshold_scales_with_the_model():
    assert default_threshold(4096) == 20
    context = context_of(Prompt(6, images=((1, 4),)), hidden_size=1024)
    assert VAR().compile(context).rule(SinkRule).threshold == 10
    assert VAR(tau=5).compile(context).rule(SinkRule).threshold == 5


def test_no_strength_is_no_plan():
    context = context_of(Prompt(6, images=((1, 4),)))
    assert compile_plan([VAR(move_fraction=0)], context) is None
    assert VAR(move_fraction=0).compile(context).rule(SinkRule) is None


@pytest.mark.parametrize(
    ("options", "facts", "images", "code", "param"),
    [
        ({}, {}, (), Code.REQUIRES_IMAGE, ""),
        ({}, {"accepts_images": False}, (), Code.UNSUPPORTED_MODEL, ""),
        ({"image_index": 1}, {}, ((1, 4),), Code.TARGET_NOT_FOUND, "image_index"),
        ({}, {"sink_dims": ()}, ((1, 4),), Code.UNSUPPORTED_MODEL, "sink_dims"),
        ({"sink_dims": [3, 64]}, {}, ((1, 4),), Code.INVALID_PARAMS, "sink_dims[1]"),
    ],
)
def test_refusals(options, facts, images, code, param):
    with pytest.raises(InterventionError) as caught:
        VAR(**options).compile(context_of(Prompt(6, images=images), **facts))
    assert (caught.value.code, caught.value.param) == (code, param)


def test_unknown_dimensions_name_the_way_out():
    context = context_of(Prompt(6, images=((1, 4),)), sink_dims=())
    with pytest.raises(InterventionError, match="pass them as sink_dims"):
        VAR().compile(context)
    assert VAR(sink_dims=[3]).compile(context).rule(SinkRule).dims == (3,)


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    sinks=st.sets(st.integers(0, 13)),
    p=st.floats(0.01, 1),
    rho=st.floats(1e-6, 1),
    require=st.booleans(),
    start=st.integers(0, 8),
    length=st.integers(1, 3),
    sharpness=st.sampled_from([0.1, 3.0, 40.0]),
)
def test_rows_still_sum_to_one(sinks, p, rho, require, start, length, sharpness):
    prompt = Prompt(12, images=((start, start + length),))
    method = VAR(move_fraction=p, rho=rho, require_visual_sink=require, min_visual_mass=1e-6)
    scores = sharpness * torch.randn(4, 14, 14, dtype=torch.float64)
    edited = attend(
        method.compile(context_of(prompt)), scores, hidden=residual_with(14, sorted(sinks))
    )
    assert (edited >= 0).all()
    torch.testing.assert_close(edited.sum(-1), torch.ones(4, 14).double(), rtol=0, atol=1e-6)


def test_rows_before_the_question_follow_no_program():
    plan = VAR().compile(context_of(Prompt(12, images=((3, 9),))))
    assert not plan.program(Phase.PREFIX).head_edits().any()
    assert plan.program_key(Phase.PREFIX) is None
    assert plan.program(Phase.LAST).head_edits().any()


@pytest.mark.parametrize("rho", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_ties_of_dyadic_shares_are_selected(rho, p):
    """Sink mass <= (1 - rho) of the image's, with equality, and just not: no division decides."""
    plan = VAR(move_fraction=p, rho=rho, min_visual_mass=0.5).compile(
        context_of(Prompt(4, images=((1, 3),)))
    )
    for extra, moves in ((0.0, True), (2.0**-20, False)):
        sink = 0.5 * (1 - rho) + extra
        row = torch.tensor([0.25, sink, 0.5 - sink, 0.25], dtype=torch.float64)
        edited = attend(plan, row.expand(4, 4, 4), hidden=residual_with(4, [1]), softmax=False)[
            0, 3
        ]
        after = row + torch.tensor([0, -p * sink, p * sink, 0]).double() if moves else row
        assert torch.equal(edited, after)


@pytest.mark.parametrize("require", [True, False])
def test_an_image_without_mass_outside_its_sinks_is_left_alone(require):
    """Its other tokens are there, but the row does not look at them: m_VN = 0."""
    row = torch.tensor([0.25, 0.5, 0.0, 0.25], dtype=torch.float64)
    method = VAR(move_fraction=1.0, rho=1e-6, min_visual_mass=1e-6, require_visual_sink=require)
    plan = method.compile(context_of(Prompt(4, images=((1, 3),))))
    edited = attend(plan, row.expand(4, 4, 4), hidden=residual_with(4, [0, 1]), softmax=False)
    assert torch.equal(edited[0, 3], row)


def test_each_image_alone_where_they_share_no_head():
    """Own gates and budgets in different heads of a layer; in one head they are refused."""
    prompt = Prompt(12, images=((1, 4), (6, 9)))
    options = {"require_visual_sink": False, "min_visual_mass": 0.1, "layers": [2]}
    parts = [VAR(**options, image_index=i, heads=[i, i + 2]) for i in (0, 1)]
    context = context_of(prompt)
    hidden, scores = residual_with(14, [0, 2, 8]), 2 * torch.randn(4, 14, 14, dtype=torch.float64)
    edited = attend(compile_plan(parts, context), scores, hidden=hidden)
    for index, part in enumerate(parts):
        alone = attend(part.compile(context), scores, hidden=hidden)
        own = [index, index + 2]
        torch.testing.assert_close(edited[own], alone[own], rtol=0, atol=1e-15)
        assert (edited[own] != attend(None, scores)[own]).any()
    together = [VAR(**options, image_index=i) for i in (0, 1)]
    with pytest.raises(InterventionError, match="conditions are tested once") as caught:
        compile_plan(together, context)
    assert caught.value.code is Code.CONFLICT


def sinks_artifact(dims, model="sha256:" + "1" * 64):
    return write_artifact("sinks", model, {"dims": np.array(dims)})


def with_artifacts(context, *files):
    known = {found.digest: found for found in map(read_artifact, files)}
    model = replace(context.model, fingerprint="sha256:" + "1" * 64)
    return replace(context, model=model, artifacts=known.get), list(known)


def test_dimensions_from_an_artifact():
    """They go before those found on the model, and are enough where none were found."""
    for dims in ((7, 21), ()):
        context = context_of(Prompt(6, images=((1, 4),)), sink_dims=dims)
        context, (digest,) = with_artifacts(context, sinks_artifact([40, 3]))
        assert VAR(artifact=digest).compile(context).rule(SinkRule).dims == (40, 3)
    assert VAR(sink_dims=[5]).compile(context).rule(SinkRule).dims == (5,)


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (sinks_artifact([3, 64]), Code.ARTIFACT_MISMATCH),
        (sinks_artifact([3], "sha256:" + "2" * 64), Code.ARTIFACT_MISMATCH),
        (
            write_artifact("heads", "sha256:" + "1" * 64, {"heads": np.array([[0, 1]])}),
            Code.ARTIFACT_MISMATCH,
        ),
        (None, Code.ARTIFACT_NOT_FOUND),
    ],
    ids=["no such dimension", "another model", "another kind", "unknown"],
)
def test_artifacts_that_do_not_fit(file, code):
    context = context_of(Prompt(6, images=((1, 4),)))
    context, digests = with_artifacts(context, *([file] if file else []))
    digest = digests[0] if digests else "sha256:" + "3" * 64
    with pytest.raises(InterventionError) as caught:
        VAR(artifact=digest).compile(context)
    assert (caught.value.code, caught.value.param) == (code, "artifact")


@pytest.mark.parametrize(
    "options",
    [
        {"artifact": "sha256:" + "1" * 64, "sink_dims": [3]},
        {"artifact": "1" * 64},
        {"artifact": "../sinks.safetensors"},
        {"sink_dims": []},
        {"sink_dims": [3, 3]},
        {"sink_dims": [-1]},
        {"move_fraction": 1.5},
        {"move_fraction": float("nan")},
        {"tau": 0},
        {"tau": float("inf")},
        {"rho": 0},
        {"rho": -0.5},
        {"min_visual_mass": 0},
        {"min_visual_mass": "0.2"},
        {"rows": "prompt"},
        {"image_index": -1},
        {"per_image": True},
        {"include_last_layer": True, "layers": [3]},
    ],
)
def test_bad_fields(options):
    with pytest.raises(ValidationError):
        VAR(**options)
