"""Plans and their builder: what is kept, what is dropped, what is refused; finding text."""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.context import Prompt, runs
from saccade_interventions.edits import ResidualEdit
from saccade_interventions.methods.pai import PAI
from saccade_interventions.phases import ROWS, Phase, parse_rows
from saccade_interventions.plan import Plan, find_crowd
from saccade_interventions.rules import RecentRule, SinkRule
from saccade_kernels.controls import CLASSES, ControlShape
from saccade_kernels.residual import RESIDUAL_EDITS, RESIDUAL_VECTORS, SiteKind
from saccade_testing.plans import context_of

SHAPE = ControlShape(layers=3, heads=2, head_dim=4)
SITES = ((1, (0, 1)),)
ALL = tuple(Phase)


@pytest.fixture
def plan():
    return PlanBuilder(SHAPE, prompt_length=8, question_start=5)


def test_phases_partition_the_rows(plan):
    built = plan.build()
    phases = [built.phase(position) for position in range(10)]
    assert (
        phases == [Phase.PREFIX] * 5 + [Phase.QUESTION] * 2 + [Phase.LAST] + [Phase.GENERATED] * 2
    )


@pytest.mark.parametrize(("length", "question"), [(9, 4), (9, 0), (9, 9), (1, 0), (2, 1)])
def test_runs_of_phases_are_the_phases_of_their_rows(length, question):
    plan = PlanBuilder(ControlShape(2, 2, 4), length, question).build()
    for start in range(length + 3):
        for end in range(start, length + 4):
            runs = plan.phases_of(start, end)
            rows = [phase for phase, count in runs for _ in range(count)]
            assert rows == [plan.phase(at) for at in range(start, end)]
            assert all(count > 0 for _, count in runs)


def test_rows_are_joined():
    assert parse_rows("last+generated") == (Phase.LAST, Phase.GENERATED)
    assert parse_rows("prompt+generated") == ALL
    with pytest.raises(ValueError, match='unknown rows "all"'):
        parse_rows("all")


def test_edits_of_no_effect_leave_nothing(plan):
    tag = plan.tag([(0, 3)])
    plan.score(SITES, [tag], ALL)
    plan.score((), [tag], ALL, bias=1.0)
    plan.mass(SITES, [(tag, tag, 0.0)], ALL)
    plan.head(SITES, ALL, 1.0)
    built = plan.build()
    assert not built.edits
    assert not built.tags
    assert built.fingerprint() == PlanBuilder(SHAPE, 8, 5).build().fingerprint()


def test_mass_cannot_become_negative(plan):
    tag = plan.tag([(0, 3)])
    with pytest.raises(ValueError, match="more mass than there is"):
        plan.mass(SITES, [(tag, tag, -1.5)], ALL)


def test_gates_are_not_chained(plan):
    tag = plan.tag([(0, 3)])
    for _ in range(2):
        plan.mass(SITES, [(tag, tag, -0.5)], ALL, [plan.gate({tag: 1}, 0.5)])
    with pytest.raises(ValueError, match="cannot be chained"):
        plan.build()


def test_at_most_two_gates(plan):
    tag = plan.tag([(0, 3)])
    with pytest.raises(ValueError, match="at most 2 gates"):
        plan.mass(SITES, [(tag, tag, -0.5)], ALL, [plan.gate({tag: 1}, 0.5)] * 3)


def test_classes_run_out(plan):
    for _ in range(CLASSES - 1):
        plan.new_class()
    with pytest.raises(ValueError, match="at most 8"):
        plan.new_class()


@pytest.mark.parametrize("sites", [((3, (0,)),), ((-1, (0,)),), ((0, (2,)),), ((0, (1, -1)),)])
@pytest.mark.parametrize("kind", ["score", "mass", "head"])
def test_edits_are_where_the_model_is(plan, kind, sites):
    tag = plan.tag([(0, 3)])
    match kind:
        case "score":
            plan.score(sites, [tag], ALL, bias=1.0)
        case "mass":
            plan.mass(sites, [(tag, tag, -0.5)], ALL)
        case "head":
            plan.head(sites, ALL, 2.0)
    with pytest.raises(ValueError, match=r"there is no (layer|head)"):
        plan.build()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer": 4}, "no residual 4"),
        ({"layer": -1}, "no residual -1"),
        ({"row": 2}, "nobody brought"),
        ({"direction": "other"}, "nobody brought"),
        ({"row": 1}, "unit vector"),
        ({"shift": float("nan")}, "finite"),
        ({"scale": float("inf")}, "finite"),
        ({"low": 1.0, "high": 0.0}, "not above"),
        ({"low": float("nan")}, "not above"),
        ({"above": 1.0, "below": 0.0}, "not above"),
        ({"layer": 3, "site": SiteKind.MLP_OUTPUT}, "no MLP output of layer 3"),
        ({"onto": 2}, "nobody brought"),
    ],
)
def test_residual_edits_are_checked(plan, fields, message):
    digest = plan.vectors(np.array([[0.0, 1.0], [0.0, 3.0]], np.float32))
    edit = ResidualEdit(**{"layer": 3, "phases": ALL, "direction": digest, "row": 0, **fields})
    with pytest.raises(ValueError, match=message):
        plan.residual(replace(edit, shift=edit.shift or 1.0))


def test_a_site_has_so_many_edits(plan):
    digest = plan.vectors(np.array([[0.0, 1.0]], np.float32))
    for _ in range(RESIDUAL_EDITS):
        plan.residual(ResidualEdit(3, ALL, digest, 0, shift=1.0))
    plan.residual(ResidualEdit(3, (), digest, 0, shift=1.0))
    plan.residual(ResidualEdit(3, ALL, digest, 0, keep_norm=True))
    assert len(plan.build().residuals) == RESIDUAL_EDITS
    plan.residual(ResidualEdit(2, ALL, digest, 0, shift=1.0, site=SiteKind.MLP_OUTPUT))
    assert len(plan.build().residuals) == RESIDUAL_EDITS + 1
    plan.residual(ResidualEdit(3, (Phase.LAST,), digest, 0, shift=1.0))
    with pytest.raises(ValueError, match="more edits than one row has room for"):
        plan.build()


def test_joined_edits_read_the_same_and_keep_the_norm_of_the_sum(plan):
    digest = plan.vectors(np.array([[0.0, 1.0], [0.0, 3.0]], np.float32))
    neutral = ResidualEdit(2, ALL, digest, 0, keep_norm=True)
    one = ResidualEdit(2, ALL, digest, 1, scale=2.0, onto=0, keep_norm=True)
    two = ResidualEdit(2, ALL, digest, 1, scale=2.0, diagonal=True, keep_norm=True)
    plan.residual(neutral, one, two, neutral)
    plan.residual(replace(one, phases=(), keep_norm=False))
    found = plan.build().residuals
    assert found == (replace(one, keep_norm=False), replace(two, joined=True))
    for other in ({"layer": 1}, {"site": SiteKind.MLP_OUTPUT}, {"keep_norm": False}):
        with pytest.raises(ValueError, match="share a site, phases and keep_norm"):
            plan.residual(one, replace(two, **other))


def test_programs_know_what_their_edits_read_and_where(plan):
    """Rows with other sites, vectors or bounds never share a program or a page."""
    digest = plan.vectors(np.array([[0.0, 1.0], [1.0, 0.0]], np.float32))
    edit = ResidualEdit(2, ALL, digest, 0, scale=0.5)
    others = [
        {"site": SiteKind.ATTENTION_OUTPUT},
        {"site": SiteKind.MLP_OUTPUT},
        {"onto": 1},
        {"above": 0.0},
        {"below": 0.0},
        {"diagonal": True},
    ]
    plan.residual(edit)
    plain = plan.build()
    keys = {plain.program_key(Phase.LAST)}
    for other in others:
        keys.add(replace(plain, residuals=(replace(edit, **other),)).program_key(Phase.LAST))
    pair = replace(plain, residuals=(edit, edit))
    joined = replace(plain, residuals=(edit, replace(edit, joined=True)))
    keys |= {pair.program_key(Phase.LAST), joined.program_key(Phase.LAST)}
    assert len(keys) == len(others) + 3


def test_directions_run_out():
    def edits(count):
        return [ResidualEdit(i % 3, ALL, "digest", i, shift=1.0) for i in range(count)]

    assert find_crowd(edits(RESIDUAL_VECTORS - 1) * 2) is None
    assert find_crowd(edits(RESIDUAL_VECTORS)) == edits(RESIDUAL_VECTORS)[-1]


@pytest.mark.parametrize("wrong", [-1, 2])
def test_classes_exist(plan, wrong):
    tag = plan.tag([(0, 3)])
    for moves in ([(tag, wrong, 0.5)], [(wrong, tag, 0.5)]):
        with pytest.raises(ValueError, match="there is no key class"):
            plan.mass(SITES, moves, ALL)
    with pytest.raises(ValueError, match="there is no key class"):
        plan.gate({wrong: 1.0}, 0.5)
    plan.score(SITES, [wrong], ALL, bias=1.0)
    with pytest.raises(ValueError, match="there is no key class"):
        plan.build()


def windowed(plan, width=3, start=8, remap=((0, 2),)):
    tag, recent = plan.tag([(0, 3)]), plan.new_class()
    plan.score(SITES, [recent], ALL, bias=1.0)
    plan.rule(RecentRule(width, start, remap))
    return tag


def test_a_window_without_an_edit_is_nothing(plan):
    plan.new_class()
    plan.rule(RecentRule(3, 8, ((0, 1),)))
    assert plan.build() == PlanBuilder(SHAPE, 8, 5).build()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"remap": ((0, 2), (1, 2))}, "stands for one class"),
        ({"remap": ((0, 1),)}, "holds no other keys"),
        ({"remap": ((0, 0),)}, "holds no other keys"),
        ({"remap": ((0, 3),)}, "there is no key class 3"),
        ({"width": 0}, "at least one"),
        ({"start": 9}, "start in the prompt or behind it"),
        ({"start": -1}, "start in the prompt or behind it"),
    ],
)
def test_windows_that_could_not_be_undone(plan, wrong, message):
    windowed(plan, **wrong)
    with pytest.raises(ValueError, match=message):
        plan.build()


def test_windows_and_sinks(plan):
    """A recent class is none that a sink can have, and generated sinks would be overwritten."""
    tag = windowed(plan)

    def built(sink: int, generated: bool = False) -> Plan:
        builder = deepcopy(plan)
        builder.rule(SinkRule(0.5, (1,), (1,), ((tag, sink),), generated=generated))
        return builder.build()

    with pytest.raises(ValueError, match="holds no other keys"):
        built(2)
    with pytest.raises(ValueError, match="not both"):
        built(0, generated=True)
    assert built(0).rule(RecentRule) == RecentRule(3, 8, ((0, 2),))


@pytest.mark.parametrize("span", [(3, 3), (4, 2), (-1, 2), (0, 9)])
def test_tags_lie_in_the_prompt(plan, span):
    with pytest.raises(ValueError, match="not inside the prompt"):
        plan.tag([span])


def test_classes_made_later_keep_their_mass(plan):
    first = plan.tag([(0, 1)])
    plan.mass(SITES, [(first, first, -0.5)], ALL, [plan.gate({first: 1}, 0.25)])
    second = plan.tag([(1, 2)])
    edit = plan.build().masses[0]
    assert edit.transform[second] == (0.0, 0.0, 1.0)
    assert edit.gates[0].weights == (0.0, 1.0, 0.0)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.sampled_from(list(ROWS)), min_size=1, max_size=3).map("+".join),
    position=st.integers(0, 30),
)
def test_programs_are_the_identity_outside_their_rows(rows, position):
    builder = PlanBuilder(SHAPE, prompt_length=20, question_start=9)
    tag = builder.tag([(2, 9)])
    phases = parse_rows(rows)
    builder.score(SITES, [tag], phases, bias=1.0)
    builder.mass(SITES, [(tag, tag, -0.5)], phases)
    builder.head(SITES, phases, 2.0)
    plan = builder.build()
    phase = plan.phase(position)
    assert plan.program(phase).head_edits().any() == (phase in phases)
    assert (plan.program_key(phase) is None) == (phase not in phases)


def test_one_program_for_images_in_other_places():
    plans = [PAI().compile(context_of(Prompt(9, images=(span,)))) for span in ((1, 4), (2, 5))]
    assert plans[0].program_key(Phase.LAST) == plans[1].program_key(Phase.LAST)
    assert plans[0].tags_key() != plans[1].tags_key()
    assert plans[0].fingerprint() != plans[1].fingerprint()


def test_finding_text_takes_whole_tokens():
    text = "a café, a cafe"
    # The é is two byte tokens that share its place; the image is three tokens for one character.
    offsets = [(0, 2), (2, 5), (5, 6), (5, 6), (6, 7), (7, 7), (7, 7), (7, 14)]
    prompt = Prompt(8, text=text, offsets=offsets)
    assert prompt.find("fé") == ((1, 4),)
    assert prompt.find(",") == ((4, 5),)
    assert prompt.find("a") == ((0, 2), (7, 8))
    assert prompt.find("") == prompt.find("tea") == ()
    assert Prompt(3).find("a") == ()


@given(st.lists(st.booleans(), max_size=12))
def test_runs(chosen):
    spans = runs(np.array(chosen, np.bool_))
    covered = np.zeros(len(chosen), np.bool_)
    for start, end in spans:
        assert start < end
        covered[start:end] = True
    assert covered.tolist() == chosen
    assert all(end < start for (_, end), (start, _) in pairwise(spans))
