"""ACT: the published function's own output, the worked example, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade_interventions.artifacts import artifact_id, read_artifact, write_artifact
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.act import ACT
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import Phase
from saccade_interventions.registry import Registry
from saccade_interventions.rules import HeadSinkRule
from saccade_kernels import edits
from saccade_kernels.controls import CLASSES, GATES
from saccade_kernels.head_sinks import HeadSinkOption, classify, mean_received
from saccade_testing.plans import context_of

GOLDEN = Path(__file__).parent / "golden"
HEADS = {"2": [0, 3], "3": [1]}
EXAMPLE = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0],
        [0.7, 0.3, 0, 0, 0, 0],
        [0.5, 0.1, 0.4, 0, 0, 0],
        [0.5, 0.05, 0.35, 0.1, 0, 0],
        [0.47, 0.05, 0.33, 0.07, 0.08, 0],
        [0.50, 0.05, 0.25, 0.05, 0.08, 0.07],
    ],
    dtype=torch.float64,
)


def classes_of(plan, attention):
    """The classes that the plan's rule finds in the prompt's attention [heads, keys, keys]."""
    rule = plan.rule(HeadSinkRule)
    options = HeadSinkOption.RELATIVE * rule.relative
    options |= HeadSinkOption.FIRST_FOUND * (rule.spare == "first_found")
    options |= HeadSinkOption.EXEMPT_INITIAL * rule.exempt_initial
    return classify(mean_received(attention.sum(1)), rule.threshold, options)


def calibrate(plan, attention, layer):
    """The plan's edit of the prompt's attention [heads, keys, keys], in float64."""
    heads = list(dict(plan.rule(HeadSinkRule).sites)[layer])
    own = attention[heads]
    (mass,) = plan.masses
    matrix = torch.zeros(CLASSES + GATES, CLASSES, dtype=torch.float64)
    matrix[:CLASSES] = torch.eye(CLASSES)
    size = len(mass.transform)
    matrix[:size, :size] = torch.tensor(mass.transform, dtype=torch.float64)
    threshold = torch.full((GATES,), -torch.inf)
    for index, gate in enumerate(mass.gates):
        matrix[CLASSES + index, :size] = torch.tensor(gate.weights, dtype=torch.float64)
        threshold[index] = gate.threshold
    rows = own.shape[0] * own.shape[1]
    members = torch.nn.functional.one_hot(classes_of(plan, own).long(), CLASSES).double()
    made, _ = edits.apply_head_masses(
        own[None], matrix.expand(rows, -1, -1), threshold.expand(rows, -1), members.mT[None]
    )
    edited = attention.clone()
    edited[heads] = made[0]
    return edited


def test_the_worked_example():
    plan = ACT(heads={"2": [1]}).compile(context_of(Prompt(6)))
    attention = EXAMPLE.expand(4, 6, 6)
    assert classes_of(plan, attention)[1].tolist() == [0, 1, 1, 0, 0, 0]
    edited = calibrate(plan, attention, 2)
    rows = {2: [0.8, 0.04, 0.16, 0, 0, 0]}
    rows[5] = [0.6285714286, 0.02, 0.10, 0.0628571429, 0.1005714286, 0.088]
    for row, wanted in rows.items():
        wanted = torch.tensor(wanted).double()
        torch.testing.assert_close(edited[1, row], wanted, rtol=0, atol=1e-7)
    torch.testing.assert_close(edited.sum(-1), torch.ones(4, 6).double(), rtol=0, atol=1e-12)
    assert torch.equal(edited[[0, 2, 3]], attention[[0, 2, 3]])


def test_the_initial_token_may_stand_apart():
    plan = ACT(heads={"2": [0]}, receivers="not_initial").compile(context_of(Prompt(6)))
    edited = calibrate(plan, EXAMPLE[None], 2)[0]
    given, rest = 0.6 * 0.30, 0.05 + 0.08 + 0.07
    wanted = [0.50, 0.02, 0.10, *(a * (1 + given / rest) for a in (0.05, 0.08, 0.07))]
    torch.testing.assert_close(edited[5], torch.tensor(wanted).double(), rtol=0, atol=1e-7)
    assert torch.equal(edited[2], EXAMPLE[2]), "a row without receivers stays"


@pytest.mark.parametrize("name", ["act_prefill", "act_prefill_nosink"])
@pytest.mark.parametrize("spare", ["initial", "first_found"])
def test_the_published_function_agrees(name, spare):
    """The first key found is the initial token there, so sparing either is the same."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    hyper = json.loads((GOLDEN / f"{name}.json").read_text())["hyper"]
    before, after = (torch.from_numpy(arrays[key][0]) for key in ("attn_in", "attn_out"))
    heads, keys, layer = hyper["H"], hyper["K"], hyper["layer_index"]
    facts = ModelFacts(layers=6, heads=heads, kv_heads=heads, head_dim=8, hidden_size=64)
    listed = {str(layer): arrays["heads"].tolist()}
    method = ACT(heads=listed, beta=hyper["beta"], theta=hyper["thres"], spare=spare)
    plan = method.compile(Context(facts, Prompt(keys)))
    sinks = classes_of(plan, before)[arrays["heads"]].bool().numpy()
    np.testing.assert_array_equal(sinks, arrays["sink_mask"][arrays["heads"]])
    edited = calibrate(plan, before, layer)
    torch.testing.assert_close(edited, after, rtol=0, atol=1e-14)
    assert torch.equal((edited != before).any(), torch.tensor(name == "act_prefill"))


def test_the_first_key_found_is_spared_as_published():
    """Where the initial token is below the threshold that is a sink."""
    attention = EXAMPLE.clone()
    attention[:, 0] *= 0.05
    plans = {
        spare: ACT(heads={"2": [0]}, spare=spare).compile(context_of(Prompt(6)))
        for spare in ("initial", "first_found")
    }
    assert classes_of(plans["initial"], attention[None])[0].tolist() == [0, 1, 1, 0, 0, 0]
    assert classes_of(plans["first_found"], attention[None])[0].tolist() == [0, 0, 1, 0, 0, 0]


def test_a_threshold_relative_to_the_length():
    plan = ACT(heads={"2": [0]}, mode="relative", alpha=0.6).compile(context_of(Prompt(6)))
    assert classes_of(plan, EXAMPLE[None])[0].tolist() == [0, 1, 1, 0, 0, 0]
    plan = ACT(heads={"2": [0]}, mode="relative", alpha=0.46).compile(context_of(Prompt(6)))
    assert classes_of(plan, EXAMPLE[None])[0].tolist() == [0, 1, 1, 0, 1, 0]


def test_the_plan():
    plan = ACT(heads=HEADS, decode="off").compile(context_of(Prompt(9)))
    assert plan.rule(HeadSinkRule).sites == ((2, (0, 3)), (3, (1,)))
    assert plan.needs.whole_prompt
    assert plan.needs.own_pages == set(Phase)
    assert plan.needs.per_head_classes
    assert not plan.program(Phase.GENERATED).head_edits().any()
    program = plan.program(Phase.QUESTION)
    assert program.head_edits().any(1).nonzero()[0].tolist() == [2, 3]
    np.testing.assert_allclose(program.transform[2, 3, :2, :2], [[1, 0.6], [0, 0.4]], rtol=1e-6)
    assert ACT(heads=HEADS).compile(context_of(Prompt(9))).program_key(Phase.GENERATED)


def test_an_artifact_lists_heads():
    pairs = np.array([[3, 1], [2, 3], [2, 0]], np.int32)
    context = context_of(Prompt(9), fingerprint="sha256:" + "0" * 64)
    data = write_artifact("heads", context.model.fingerprint, {"heads": pairs})
    found = read_artifact(data)
    known = Context(context.model, context.prompt, {artifact_id(data): found}.get)
    plan = ACT(artifact=artifact_id(data)).compile(known)
    assert plan == ACT(heads=HEADS).compile(context)
    with pytest.raises(InterventionError) as caught:
        ACT(artifact="sha256:" + "1" * 64).compile(known)
    assert (caught.value.code, caught.value.param) == (Code.ARTIFACT_NOT_FOUND, "artifact")


def test_no_strength_is_no_plan():
    context = context_of(Prompt(9))
    assert compile_plan([ACT(heads=HEADS, beta=1)], context) is None


@pytest.mark.parametrize(
    ("entry", "param"),
    [
        ({}, "artifact"),
        ({"heads": HEADS, "artifact": "sha256:" + "0" * 64}, "heads"),
        ({"heads": [0, 1]}, "heads"),
        ({"heads": "all"}, "heads"),
        ({"heads": {"-1": [0]}}, "heads"),
        ({"heads": {}}, "heads"),
        ({"heads": {"1": [0, 0]}}, "heads"),
        ({"heads": {"1": [-1]}}, "heads"),
        ({"heads": HEADS, "beta": 1.5}, "beta"),
        ({"heads": HEADS, "beta": float("nan")}, "beta"),
        ({"heads": HEADS, "theta": 0}, "theta"),
        ({"heads": HEADS, "theta": "0.1"}, "theta"),
        ({"heads": HEADS, "alpha": float("inf")}, "alpha"),
        ({"heads": HEADS, "least_rows": 0}, "least_rows"),
        ({"heads": HEADS, "decode": "none"}, "decode"),
        ({"artifact": "heads.safetensors"}, "artifact"),
    ],
)
def test_bad_entries(registry: Registry, entry, param):
    with pytest.raises(InterventionError) as caught:
        registry.parse([{"method": "act", **entry}])
    assert caught.value.param.startswith(f"interventions[0].{param}")


@pytest.mark.parametrize(
    ("heads", "facts", "code", "param"),
    [
        ({"40": [0]}, {}, Code.LAYER_OUT_OF_RANGE, 'heads["40"]'),
        ({"1": [0, 4]}, {"kv_heads": 2}, Code.HEAD_OUT_OF_RANGE, 'heads["1"][1]'),
    ],
)
def test_heads_that_are_not_there(heads, facts, code, param):
    with pytest.raises(InterventionError) as caught:
        ACT(heads=heads).compile(context_of(Prompt(6), **facts))
    assert (caught.value.code, caught.value.param) == (code, param)
    if facts:
        assert "query heads" in caught.value.message


VAR = {"method": "var", "heads": {"2": [3]}}
COMPOSED = {
    "scores": [{"method": "pai"}],
    "gains": [{"method": "head_scale", "gain": 2, "heads": {"2": [0]}}],
    "masses elsewhere": [{**VAR, "heads": {"2": [1]}}],
    "all": [{"method": "pai"}, {**VAR, "heads": {"2": [1, 2]}}],
}


@pytest.mark.parametrize("case", COMPOSED)
def test_composition(registry: Registry, case):
    """Other methods divide the keys as they like: calibrated heads have classes of their own."""
    context = context_of(Prompt(12, images=((1, 4), (5, 8))))
    act = {"method": "act", "heads": HEADS}
    plan = compile_plan(registry.parse([*COMPOSED[case], act]), context)
    own = [edit for edit in plan.masses if edit.per_head_classes]
    assert [edit.source for edit in own] == [len(COMPOSED[case])]
    assert plan.rule(HeadSinkRule).source == len(COMPOSED[case])
    np.testing.assert_allclose(
        plan.program(Phase.LAST).transform[2, 3, :2, :2], [[1, 0.6], [0, 0.4]], rtol=1e-6
    )


@pytest.mark.parametrize("order", [1, -1])
def test_two_that_move_the_masses_of_a_head(registry: Registry, order):
    entries = [VAR, {"method": "act", "heads": HEADS}][::order]
    with pytest.raises(InterventionError, match="layer 2, head 3") as caught:
        compile_plan(registry.parse(entries), context_of(Prompt(12, images=((1, 4),))))
    assert (caught.value.code, caught.value.param) == (Code.CONFLICT, "interventions[1]")


def test_two_of_them(registry: Registry):
    entries = [{"method": "act", "heads": HEADS}, {"method": "act", "heads": {"1": [2]}}]
    with pytest.raises(InterventionError, match="sinks of single heads") as caught:
        compile_plan(registry.parse(entries), context_of(Prompt(12)))
    assert caught.value.code == Code.CONFLICT
