"""AdaptVis: both of its edits against the formula, and how it goes together with others."""

from dataclasses import replace

import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.edits import ScoreEdit
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.adaptvis import AdaptVis
from saccade_interventions.methods.pai import PAI
from saccade_interventions.methods.pasta import PASTA
from saccade_interventions.phases import Phase
from saccade_interventions.registry import Registry
from saccade_interventions.rules import ConfidenceRule
from saccade_kernels.controls import ControlShape
from saccade_testing.plans import attend, context_of

PROMPT = Prompt(9, images=((1, 3), (5, 7)))


def decided(plan, name):
    """The plan of the run that counts."""
    edits = getattr(plan.rule(ConfidenceRule), name)
    return replace(plan.without_rules(ConfidenceRule), scores=plan.scores + edits)


@pytest.mark.parametrize(("name", "weight"), [("unsure", 0.75), ("sure", 1.5)])
def test_the_formula_written_out(name, weight):
    plan = AdaptVis(w1=0.75, w2=1.5).compile(context_of(PROMPT))
    assert not plan.edits, "the first look is the plain model's"
    scores = torch.randn(4, 12, 12, dtype=torch.float64)
    scaled = scores.clone()
    scaled[:, 8, [1, 2, 5, 6]] *= weight
    edited = attend(decided(plan, name), scores)
    torch.testing.assert_close(edited, attend(None, scaled), rtol=0, atol=1e-15)


def test_the_rule():
    rule = AdaptVis(threshold=0.3).compile(context_of(PROMPT)).rule(ConfidenceRule)
    assert (rule.threshold, rule.decimals) == (0.3, 2)
    assert [edit.scale for edit in (*rule.unsure, *rule.sure)] == [-0.5, 0.5]
    assert {edit.phases for edit in (*rule.unsure, *rule.sure)} == {(Phase.LAST,)}


def test_weights_of_one_are_no_edits():
    context = context_of(PROMPT)
    assert compile_plan([AdaptVis(w1=1, w2=1)], context) is None
    rule = AdaptVis(w1=1).compile(context).rule(ConfidenceRule)
    assert (rule.unsure, len(rule.sure)) == ((), 1)


@pytest.mark.parametrize("order", [1, -1])
def test_with_methods_that_divide_the_image(order):
    """Its classes are those of the whole plan; score edits of all methods add."""
    methods = [
        AdaptVis(w1=0.5, w2=1.5),
        PAI(alpha=0.25, rows="prompt+generated"),
        PASTA(spans=[[2, 6]], alpha=0.5, heads="all"),
    ][::order]
    plan = compile_plan(methods, context_of(PROMPT))
    assert {e.source for e in plan.rule(ConfidenceRule).sure} == {plan.rule(ConfidenceRule).source}
    assert methods[plan.rule(ConfidenceRule).source].method == "adaptvis"
    scores = torch.randn(4, 12, 12, dtype=torch.float64)
    image = [1, 2, 5, 6]
    z = scores.clone()
    z[:, :, image] += 0.25 * scores[:, :, image].abs()
    z[:, 8, image] += 0.5 * scores[:, 8, image]
    z[:, :, [0, 1, 6, 7, 8]] += torch.tensor(0.5).log().double()
    edited = attend(decided(plan, "sure"), scores)
    torch.testing.assert_close(edited, attend(None, z), rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["dola", "vcd", "pai_contrast", "vhr"])
def test_what_it_cannot_be_together_with(registry: Registry, method):
    context = context_of(Prompt(9, images=((1, 3),)))
    entry = registry.methods[method].probe(context.model).entry
    for entries in ([{"method": "adaptvis"}, entry], [entry, {"method": "adaptvis"}]):
        with pytest.raises(InterventionError) as caught:
            compile_plan(registry.parse(entries), context)
        assert caught.value.code is Code.CONFLICT
        assert caught.value.param == "interventions[1]"


def test_two_of_them_are_refused():
    with pytest.raises(InterventionError, match="first token's confidence"):
        compile_plan([AdaptVis(), AdaptVis(w1=0.25)], context_of(PROMPT))


def test_edits_that_do_not_fit_are_mistakes_of_a_method():
    sites = ((0, (0,)),)
    for edit in (
        ScoreEdit(sites, (Phase.QUESTION,), (1,), scale=1.0),
        ScoreEdit(sites, (Phase.LAST,), (2,), scale=1.0),
        ScoreEdit(((7, (0,)),), (Phase.LAST,), (1,), scale=1.0),
    ):
        builder = PlanBuilder(ControlShape(2, 2, 8), 9, 0)
        builder.tag([(1, 2)])
        builder.rule(ConfidenceRule(0.5, (edit,), ()))
        with pytest.raises(ValueError, match=r"last row|class|layer"):
            builder.build()
