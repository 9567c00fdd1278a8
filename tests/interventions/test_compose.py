"""Composition: each rule against the formula written out, and every refusal."""

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from msgspec import structs

from saccade_interventions.chains import find_loud_chain
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.edits import HeadEdit, TagRun, Vectors
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.head_scale import HeadScale
from saccade_interventions.methods.pai import PAI
from saccade_interventions.methods.pasta import PASTA
from saccade_interventions.methods.var import VAR
from saccade_interventions.methods.vhr import VHR
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_interventions.targets import Rows, Sited
from saccade_kernels.controls import NEVER_ATTEND
from saccade_testing.plans import attend, context_of, residual_with

PROMPT = Prompt(12, images=((3, 6), (7, 9)))
ROWS = "prompt+generated"
STRONG = {"move_fraction": 0.75, "rho": 0.125, "min_visual_mass": 0.0625}
SINKS = [0, 4, 8, 10]


class Move(Sited):
    """A mass edit: a share of the mass on one span goes to another, if it has ``at_least``."""

    title: ClassVar[str] = "Move"
    method: Literal["move"] = "move"
    source: list[int]
    to: list[int]
    share: float = 0.5
    gain: float = 1.0
    at_least: float | None = None
    rows: Rows = ROWS

    def compile(self, context: Context) -> Plan:
        plan = context.plan()
        source, to = plan.tag([tuple(self.source)]), plan.tag([tuple(self.to)])
        moves = [(source, source, -self.share), (to, source, self.share)]
        gates = [] if self.at_least is None else [plan.gate({source: 1}, self.at_least)]
        plan.mass(self.sites(context), moves, self.phases, gates)
        plan.head(self.sites(context), self.phases, self.gain)
        return plan.build()


@pytest.fixture
def context():
    return context_of(PROMPT)


@pytest.fixture
def scores():
    return 2 * torch.randn(4, 15, 15, dtype=torch.float64)


@pytest.fixture
def hidden():
    return residual_with(15, SINKS)


def moved(attention, source, to, share):
    """Move a share of each row's mass, proportions inside the spans kept, sums too."""
    result = attention.clone()
    given, taken = attention[..., slice(*source)], attention[..., slice(*to)]
    mass = given.sum(-1, keepdim=True)
    has = taken.sum(-1, keepdim=True)
    factor = 1 + torch.where(has > 0, share * mass / has, torch.zeros_like(has))
    result[..., slice(*source)] = given * torch.where(has > 0, 1 - share, 1.0)
    result[..., slice(*to)] = taken * factor
    return result


def refused(interventions, context):
    with pytest.raises(InterventionError) as caught:
        compile_plan(interventions, context)
    return caught.value


def test_nothing_is_no_plan(context):
    assert compile_plan([], context) is None
    assert compile_plan([VAR(move_fraction=0), PAI(alpha=0)], context) is None


def test_one_method_keeps_its_plan(context):
    alone = PAI().compile(context)
    assert compile_plan([PAI()], context) == alone
    composed = compile_plan([VAR(move_fraction=0), PAI()], context)
    assert [edit.source for edit in composed.edits] == [1]
    assert composed.fingerprint() == alone.fingerprint()


def test_score_edits_add(context, scores):
    """PAI on the images, PASTA on the text and on half an image: both read the unedited score."""
    pai = PAI(alpha=0.5, rows=ROWS)
    pasta = PASTA(alpha=0.25, spans=[[4, 10]], layers=[2, 3], rows=ROWS)
    changed = scores.clone()
    changed[..., [3, 4, 5, 7, 8]] += 0.5 * scores[..., [3, 4, 5, 7, 8]].abs()
    changed[..., [0, 1, 2, 3, 10, 11]] += torch.tensor(0.25).double().log()
    for order in ([pai, pasta], [pasta, pai]):
        edited = attend(compile_plan(order, context), scores, exact=True)
        torch.testing.assert_close(edited, attend(None, changed), rtol=0, atol=1e-15)


def test_two_strengths_of_one_method_add(context, scores):
    both = compile_plan([PAI(alpha=0.25), PAI(alpha=0.5)], context)
    one = compile_plan([PAI(alpha=0.75)], context)
    torch.testing.assert_close(attend(both, scores), attend(one, scores), rtol=0, atol=1e-15)


@pytest.mark.parametrize("first", ["var", "score"])
@pytest.mark.parametrize(
    "score",
    [PAI(alpha=0.5, rows=ROWS), PASTA(alpha=0.25, spans=[[9, 11]], layers=[2])],
    ids=["pai", "pasta"],
)
def test_mass_edits_read_what_score_edits_made(context, scores, hidden: torch.Tensor, score, first):
    """VAR of the attention that the other method left, in either order."""
    var = VAR(**STRONG)
    order = [var, score] if first == "var" else [score, var]
    after_score = attend(compile_plan([score], context), scores, exact=True)
    after_both = attend(compile_plan([var], context), after_score, hidden=hidden, softmax=False)
    edited = attend(compile_plan(order, context), scores, hidden=hidden, exact=True)
    torch.testing.assert_close(edited, after_both, rtol=0, atol=1e-15)
    assert (after_both != after_score).any()


def test_three_methods_at_once(context, scores, hidden: torch.Tensor):
    pai, var = PAI(alpha=0.5, rows=ROWS), VAR(**STRONG)
    pasta = PASTA(alpha=0.25, spans=[[9, 11]], layers=[2])
    plan = compile_plan([pasta, var, pai], context)
    assert sorted({edit.source for edit in plan.edits}) == [0, 1, 2]
    scored = attend(compile_plan([pai, pasta], context), scores, exact=True)
    after = attend(compile_plan([var], context), scored, hidden=hidden, softmax=False)
    edited = attend(plan, scores, hidden=hidden, exact=True)
    torch.testing.assert_close(edited, after, rtol=0, atol=1e-15)


def test_generated_sinks_are_found_in_a_composition(context, scores):
    var = VAR(**STRONG, sinks_in_generated=True)
    pasta = PASTA(alpha=0.25, spans=[[3, 6], [7, 9]], layers=[2])
    hidden = residual_with(15, [*SINKS, 12])
    scored = attend(compile_plan([pasta], context), scores, exact=True)
    after = attend(compile_plan([var], context), scored, hidden=hidden, softmax=False)
    edited = attend(compile_plan([pasta, var], context), scores, hidden=hidden, exact=True)
    torch.testing.assert_close(edited, after, rtol=0, atol=1e-15)
    assert (after[:, 12:, 12] < scored[:, 12:, 12]).any()


def test_mass_edits_chain_in_order(context, scores):
    one = Move(source=[0, 3], to=[3, 6], share=0.5)
    two = Move(source=[3, 6], to=[9, 11], share=0.25)
    before = attend(None, scores)
    for order in ([one, two], [two, one]):
        edited = attend(compile_plan(order, context), scores)[:, 9:]
        after = before
        for move in order:
            after = moved(after, move.source, move.to, move.share)
        torch.testing.assert_close(edited, after[:, 9:], rtol=0, atol=1e-15)


def test_gains_multiply(context):
    moves = [Move(source=[0, 1], to=[1, 2], gain=gain) for gain in (0.5, 3.0)]
    plan = compile_plan(moves, context)
    assert (plan.program(plan.phase(0)).gain == 1.5).all()
    assert [edit.source for edit in plan.heads] == [0, 1]


def test_a_gated_edit_beside_an_ungated_one_elsewhere(context, scores):
    gated = Move(source=[0, 3], to=[3, 6], layers=[2], at_least=0.25)
    free = Move(source=[0, 2], to=[3, 6], layers=[3])
    before = attend(None, scores)
    after = moved(before, gated.source, gated.to, gated.share)
    is_open = before[..., 0:3].sum(-1, keepdim=True) >= 0.25
    assert is_open.any()
    assert not is_open.all()
    plan = compile_plan([free, gated], context)
    edited = attend(plan, scores)[:, 9:]
    expected = torch.where(is_open, after, before)[:, 9:]
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-15)
    after = moved(before, free.source, free.to, free.share)[:, 9:]
    torch.testing.assert_close(attend(plan, scores, layer=3)[:, 9:], after, rtol=0, atol=1e-15)


def test_two_rules_of_one_kind_share_the_sinks(context, scores, hidden: torch.Tensor):
    """VAR with one strength in one layer, with another in the next."""
    parts = [VAR(**STRONG, layers=[2]), VAR(move_fraction=0.5, layers=[3], heads=[0, 3])]
    plan = compile_plan(parts, context)
    assert plan.rule(SinkRule).layers == (2, 3)
    for part, layer in zip(parts, (2, 3), strict=True):
        alone = attend(part.compile(context), scores, layer=layer, hidden=hidden)
        edited = attend(plan, scores, layer=layer, hidden=hidden)
        torch.testing.assert_close(edited, alone, rtol=0, atol=1e-15)
        assert (edited != attend(None, scores)).any()


def test_two_images_by_two_rules(context, scores, hidden: torch.Tensor):
    parts = [
        VAR(**STRONG, image_index=i, layers=[2 + i], require_visual_sink=False) for i in (0, 1)
    ]
    plan = compile_plan(parts, context)
    assert plan.classes == 6
    for part, layer in zip(parts, (2, 3), strict=True):
        alone = attend(part.compile(context), scores, layer=layer, hidden=hidden)
        edited = attend(plan, scores, layer=layer, hidden=hidden)
        torch.testing.assert_close(edited, alone, rtol=0, atol=1e-15)


SPANS = [[[0, 1], [2, 3]], [[0, 2]], [[1, 2], [9, 10]], [[10, 12]]]
CONFLICTS = {
    "two gated": ([VAR(), VAR(rho=0.8)], 1, "both move attention in layer 2, head 0"),
    "gated and chained": (
        [PAI(), VAR(), Move(source=[9, 10], to=[10, 11])],
        2,
        "both move attention",
    ),
    "chained and gated": (
        [Move(source=[9, 10], to=[10, 11]), VAR()],
        1,
        "both move attention",
    ),
    "thresholds": ([VAR(layers=[2]), VAR(layers=[3], tau=9)], 1, "different rules"),
    "dimensions": ([VAR(layers=[2]), VAR(layers=[3], sink_dims=[7])], 1, "different rules"),
    "requirements": (
        [VAR(layers=[2]), VAR(layers=[3], require_visual_sink=False)],
        1,
        "different sinks",
    ),
    "images": ([VAR(layers=[2]), VAR(layers=[3], image_index=0)], 1, "requires sinks among keys"),
    "divided sinks": ([PASTA(spans=[[3, 5]], layers=[2]), VAR()], 1, "requires sinks among keys"),
    "divided receivers": (
        [VAR(require_visual_sink=False), PASTA(spans=[[3, 5]], layers=[2])],
        1,
        "moves attention to keys",
    ),
    "classes": (
        [VAR(), *(PASTA(spans=spans, layers=[2]) for spans in SPANS)],
        None,
        "the kernels hold 8",
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_what_is_not_exact_is_refused(context, case):
    interventions, later, message = CONFLICTS[case]
    error = refused(interventions, context)
    assert error.code is Code.CONFLICT
    assert error.param == ("interventions" if later is None else f"interventions[{later}]")
    with pytest.raises(InterventionError, match=message):
        raise error


class Narrow(VAR):
    """VAR that looks for sinks in one layer and edits two."""

    method: Literal["narrow"] = "narrow"

    def compile(self, context: Context) -> Plan:
        plan = super().compile(context)
        return plan.with_rules(structs.replace(plan.rule(SinkRule), layers=(2,)))


def test_sinks_are_not_found_where_a_method_does_not_look(context):
    parts = [Narrow(layers=[2, 3], heads=[0]), VAR(layers=[3], heads=[1])]
    assert "look for sinks in different layers" in refused(parts, context).message
    assert compile_plan([Narrow(layers=[2, 3]), VAR(layers=[4])], context)


def test_both_parties_are_named(context):
    message = refused([VAR(), PAI(), VAR()], context).message
    assert "var (interventions[0]) and var (interventions[2])" in message


def test_a_method_speaks_from_its_place_in_the_request(context):
    error = refused([PAI(), VAR(layers=[1, 6])], context)
    assert error.code is Code.LAYER_OUT_OF_RANGE
    assert error.param == "interventions[1].layers[1]"
    error = refused([PAI(), PASTA(spans=[[0, 12]], layers=[1])], context)
    assert error.param == "interventions[1]"


class Hide(Sited):
    """Hides the first two keys and raises the next."""

    title: ClassVar[str] = "Hide"
    method: Literal["hide"] = "hide"
    rows: Rows = ROWS

    def compile(self, context: Context) -> Plan:
        plan = context.plan()
        plan.score(self.sites(context), [plan.tag([(2, 3)])], self.phases, bias=1.0)
        built = plan.build()
        return replace(built, tags=(TagRun(0, 2, NEVER_ATTEND), *built.tags))


def test_hidden_keys_stay_hidden(context):
    plan = compile_plan([VAR(), Hide()], context)
    assert plan.hides
    assert plan.base_tags().tolist()[:2] == [NEVER_ATTEND] * 2
    assert NEVER_ATTEND not in plan.base_tags()[2:]
    assert NEVER_ATTEND not in sum(plan.rule(SinkRule).remap, ())


def test_a_class_without_keys_still_receives(context):
    """Every key that mass would move to is hidden: the mass must come back, not vanish."""
    plan = compile_plan([Hide(), Move(source=[3, 6], to=[0, 2])], context)
    transform = torch.tensor(plan.masses[0].transform)
    assert transform.sum(0).tolist() == [1.0] * plan.classes
    assert transform.ne(torch.eye(plan.classes)).any()


def test_rows_without_an_edit_follow_no_program(context):
    plan = compile_plan([PAI(rows="generated"), VAR(rows="generated")], context)
    phases = {plan.phase(i) for i in range(12)}
    assert len(phases) == 3
    for phase in phases:
        assert not plan.program(phase).head_edits().any()
        assert plan.program_key(phase) is None


def scaled(gain, layers=(1,), **fields):
    return HeadScale(gain=gain, layers=list(layers), **fields)


def test_chained_gains_multiply_to_a_bound(context):
    kept = [
        [scaled(16), scaled(1)],
        [scaled(-4), scaled(4)],
        [scaled(16), scaled(0.5), scaled(2)],
        [scaled(16), scaled(16, layers=[2])],
        [scaled(16, rows="last"), scaled(16, rows="generated")],
        [scaled(0), scaled(16), scaled(16)],
        [scaled(4), VHR(gain=4, layers=[1])],
    ]
    for methods in kept:
        assert compile_plan(methods, context) is not None
    refusals = {
        1: [scaled(16), scaled(-1.01)],
        2: [scaled(4), scaled(4), scaled(1.5)],
        3: [scaled(2, layers=[0]), scaled(8), scaled(8, layers=[2]), scaled(2.5, layers=[0, 1])],
    }
    for index, methods in refusals.items():
        error = refused(methods, context)
        assert (error.code, error.param) == (Code.CONFLICT, f"interventions[{index}]")
        assert "head_scale" in error.message
        assert "layer 1, head 0" in error.message
        assert "more than 16" in error.message
    measured = refused([VHR(gain=4, layers=[1]), scaled(4.5)], context)
    assert measured.param == "interventions[0]"
    assert "vhr" in measured.message


def test_a_later_gain_that_scales_a_shift_is_bounded_too():
    context = context_of(PROMPT)
    shift = np.ones((4, context.model.head_dim), np.float32)
    removed = HeadEdit(((1, (0, 1, 2, 3)),), (Phase.LAST,), 0.0, Vectors.pack(shift).digest)
    louder = replace(removed, gain=5.0, shift=None)
    assert find_loud_chain([removed, louder]) is None
    assert find_loud_chain([removed, louder, louder]) == (louder, (1, 0, Phase.LAST))
