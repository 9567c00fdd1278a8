"""VHR's parameters, what they compile to, and what is refused."""

import pytest

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.vhr import VHR
from saccade_interventions.phases import Phase
from saccade_interventions.registry import Registry
from saccade_interventions.rules import MeasuredGains
from saccade_testing.plans import context_of

PROMPT = Prompt(12, images=((2, 5), (6, 9)))


def test_the_paper_s_defaults():
    plan = VHR().compile(context_of(PROMPT, layers=32))
    assert plan.rule(MeasuredGains) == MeasuredGains((1, *range(18, 32)), 2.0, tuple(Phase))
    assert plan.needs.whole_prompt
    assert plan.needs.own_pages == dict(plan.needs.own_programs).keys() == set(Phase)
    assert not plan.needs.per_head_classes
    assert plan.edits == plan.tags == ()


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (1, (0,)),
        (2, (1,)),
        (4, (1, 2, 3)),
        (6, (1, 3, 4, 5)),
        (28, (1, *range(16, 28))),
        (40, (1, *range(22, 40))),
    ],
)
def test_default_layers_scale(layers, chosen):
    assert VHR().compile(context_of(PROMPT, layers=layers)).rule(MeasuredGains).layers == chosen


def test_options_arrive():
    method = VHR(
        gain=1.5,
        layers=[3, 0],
        rows="last+generated",
        without_image="hidden",
        branch_gains=False,
        drop_outliers=False,
        std="population",
        relative=True,
        diagnose=4,
    )
    plan = method.compile(context_of(PROMPT))
    assert plan.rule(MeasuredGains) == MeasuredGains(
        layers=(0, 3),
        gain=1.5,
        phases=(Phase.LAST, Phase.GENERATED),
        drop_outliers=False,
        images="hidden",
        both=False,
        population=True,
        relative=True,
        report=4,
    )
    assert not plan.needs.whole_prompt


def test_gain_one_is_no_plan_unless_it_diagnoses():
    context = context_of(PROMPT)
    assert compile_plan([VHR(gain=1)], context) is None
    rule = compile_plan([VHR(gain=1, diagnose=2)], context).rule(MeasuredGains)
    assert (rule.layers, rule.phases, rule.report) == ((), (), 2)


def test_rows_with_gains_follow_a_program_of_their_own():
    context = context_of(PROMPT)
    plan = VHR(rows="last+generated").compile(context)
    assert plan.program_key(Phase.PREFIX) is plan.program_key(Phase.QUESTION) is None
    key = plan.program_key(Phase.LAST)
    assert key == plan.program_key(Phase.GENERATED)
    assert key is not None
    assert key != VHR(rows="last+generated", gain=3).compile(context).program_key(Phase.LAST)
    assert plan.fingerprint() != VHR(rows="last").compile(context).fingerprint()


def test_entries_differ_by_content_only():
    assert VHR(layers=[3, 1]).fingerprint() == VHR(layers=[1, 3]).fingerprint()
    assert VHR().fingerprint() != VHR(relative=True).fingerprint()


@pytest.mark.parametrize(
    ("options", "facts", "prompt", "code", "param"),
    [
        ({}, {}, Prompt(6), Code.REQUIRES_IMAGE, ""),
        ({}, {"accepts_images": False}, PROMPT, Code.UNSUPPORTED_MODEL, ""),
        ({"layers": [1, 6]}, {}, PROMPT, Code.LAYER_OUT_OF_RANGE, "layers[1]"),
        ({"diagnose": 5}, {}, PROMPT, Code.INVALID_PARAMS, "diagnose"),
        ({"gain": 1, "layers": [9]}, {}, PROMPT, Code.LAYER_OUT_OF_RANGE, "layers[0]"),
    ],
)
def test_refusals(options, facts, prompt, code, param):
    with pytest.raises(InterventionError) as caught:
        VHR(**options).compile(context_of(prompt, **facts))
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"gain": -0.1}, Code.INVALID_PARAMS, "interventions[0].gain"),
        ({"gain": 4.5}, Code.INVALID_PARAMS, "interventions[0].gain"),
        ({"gain": "2"}, Code.INVALID_PARAMS, "interventions[0].gain"),
        ({"gain": float("nan")}, Code.INVALID_PARAMS, "interventions[0].gain"),
        ({"gain": float("inf")}, Code.INVALID_PARAMS, "interventions[0].gain"),
        ({"layers": []}, Code.INVALID_PARAMS, "interventions[0].layers"),
        ({"layers": [1, 1]}, Code.INVALID_PARAMS, "interventions[0].layers[1]"),
        ({"layers": [-1]}, Code.LAYER_OUT_OF_RANGE, "interventions[0].layers[0]"),
        ({"heads": [0]}, Code.UNKNOWN_FIELD, "interventions[0].heads"),
        ({"rows": "image"}, Code.INVALID_PARAMS, "interventions[0].rows"),
        ({"without_image": "masked"}, Code.INVALID_PARAMS, "interventions[0].without_image"),
        ({"std": 1}, Code.INVALID_PARAMS, "interventions[0].std"),
        ({"diagnose": 0}, Code.INVALID_PARAMS, "interventions[0].diagnose"),
        ({"branch_gains": 1}, Code.INVALID_PARAMS, "interventions[0].branch_gains"),
    ],
)
def test_bad_values(registry: Registry, fields, code, param):
    with pytest.raises(InterventionError) as caught:
        registry.parse([{"method": "vhr", **fields}])
    assert (caught.value.code, caught.value.param) == (code, param)


def test_one_request_measures_once():
    with pytest.raises(InterventionError, match="only one of them can choose heads") as caught:
        compile_plan([VHR(), VHR(gain=3)], context_of(PROMPT))
    assert caught.value.code is Code.CONFLICT


def test_sources_name_the_entry():
    plan = compile_plan([VHR(gain=1), VHR()], context_of(PROMPT))
    assert plan.rule(MeasuredGains).source == 1
