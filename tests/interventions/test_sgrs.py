"""SGRS as a request: what its rule says, and what is refused. Its arithmetic: test_gradient.py."""

import pytest

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.pai import PAI
from saccade_interventions.methods.sgrs import SGRS
from saccade_interventions.registry import Registry
from saccade_interventions.rules import SaliencyRule
from saccade_testing.plans import context_of

PROMPT = Prompt(9, images=((1, 3),))


def test_the_defaults():
    """sgrs.md, the fixed reading."""
    plan = SGRS().compile(context_of(Prompt(9), layers=32, special_tokens=(1, 2)))
    assert plan.rule(SaliencyRule) == SaliencyRule(
        layers=(6, 7, 8), candidates=5, draws=3, alpha=0.6, window=5, exempt=(1, 2)
    )
    assert not plan.edits


@pytest.mark.parametrize(
    ("layers", "wanted"), [(40, (8, 9, 10)), (28, (5, 6, 7)), (6, (1, 2)), (4, (1,)), (1, (0,))]
)
def test_layers_in_proportion(layers, wanted):
    assert SGRS().compile(context_of(PROMPT, layers=layers)).rule(SaliencyRule).layers == wanted


def test_every_parameter_arrives():
    method = SGRS(
        candidates=4,
        draws=2,
        alpha=0.9,
        window=7,
        layers=[3, 1],
        region="after_image",
        with_self=False,
        normalisation="mean",
        history="accepted",
        warmup=2,
        fallback="most_salient",
    )
    rule = method.compile(context_of(PROMPT)).rule(SaliencyRule)
    assert rule == SaliencyRule(
        (1, 3), 4, 2, 0.9, 7, "after_image", False, "mean", "accepted", 2, "most_salient"
    )
    assert method.normalised()["layers"] == [1, 3]


def test_no_threshold_is_no_plan():
    assert compile_plan([SGRS(alpha=0)], context_of(PROMPT)) is None


def test_a_layer_that_is_not_there():
    with pytest.raises(InterventionError) as caught:
        compile_plan([SGRS(layers=[1, 6])], context_of(PROMPT))
    assert caught.value.code is Code.LAYER_OUT_OF_RANGE
    assert caught.value.param == "interventions[0].layers[1]"


@pytest.mark.parametrize(
    "wrong",
    [
        {"candidates": 17},
        {"candidates": 0},
        {"draws": 0},
        {"alpha": -0.1},
        {"alpha": float("nan")},
        {"window": 0},
        {"layers": []},
        {"layers": [1, 1]},
        {"region": "image"},
        {"with_self": 1},
        {"normalisation": "sum"},
        {"history": "rejected"},
        {"warmup": 0},
        {"fallback": "any"},
    ],
)
def test_bad_parameters(registry: Registry, wrong):
    with pytest.raises(InterventionError) as caught:
        registry.parse([{"method": "sgrs", **wrong}])
    assert caught.value.param.startswith(f"interventions[0].{next(iter(wrong))}")


def test_beside_edits_it_is_kept_as_it_is():
    plan = compile_plan([PAI(), SGRS()], context_of(PROMPT))
    assert plan.rule(SaliencyRule).source == 1
    assert {edit.source for edit in plan.scores} == {0}


@pytest.mark.parametrize("method", ["dola", "vcd", "pai_contrast"])
def test_a_contrasted_distribution_is_refused(registry: Registry, method):
    """Its gradient would not be that of the distribution that tokens are drawn from."""
    context = context_of(PROMPT)
    entry = registry.methods[method].probe(context.model).entry
    for entries in ([{"method": "sgrs"}, entry], [entry, {"method": "sgrs"}]):
        with pytest.raises(InterventionError, match="distribution") as caught:
            compile_plan(registry.parse(entries), context)
        assert caught.value.code is Code.CONFLICT
