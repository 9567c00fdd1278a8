"""Weights of single keys in plans: what they do to scores, what is refused, and several at once."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from saccade_interventions.base import Intervention
from saccade_interventions.branches import deleted_plan, hidden_plan
from saccade_interventions.builder import PlanBuilder
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.edits import ScoreEdit
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.key_weights import KeyWeights
from saccade_interventions.phases import Phase, parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import ConfidenceRule
from saccade_kernels.controls import KEY_WEIGHTS, ControlShape
from saccade_testing.plans import MODEL, attend, context_of

ROWS = parse_rows("question+generated")
PROMPT = Prompt(12, ((2, 5),))
ALL = tuple((layer, tuple(range(MODEL.heads))) for layer in range(MODEL.layers))
LAYER = 2


class Weighing(Intervention):
    """A method that weighs one run of keys, for tests."""

    method: str = "weighing"
    start: int = 0
    values: list[float] = Field(default=[1.0, -2.0])
    weight: float = 1.0
    layers: tuple[int, ...] = tuple(range(MODEL.layers))
    later: bool = False

    def compile(self, context: Context) -> Plan:
        plan = context.plan()
        span = (self.start, self.start + len(self.values))
        slot = plan.key_weights(np.array(self.values), [span])
        sites = tuple(site for site in ALL if site[0] in self.layers)
        plan.score(sites, [], ROWS, slot=slot, weight=self.weight)
        if self.later:
            edit = ScoreEdit(sites, (Phase.LAST,), (), slot=slot, weight=1.0)
            plan.rule(ConfidenceRule(threshold=0.5, unsure=(edit,), sure=()))
        return plan.build()


def builder() -> PlanBuilder:
    return PlanBuilder(ControlShape(6, 4, 8), 12, 5)


def scores_of(*methods: Intervention, keys: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of rows behind the image without and with the methods, [heads, rows, keys]."""
    scores = torch.randn(4, keys, keys, dtype=torch.float64)
    plan = compile_plan(methods, context_of(PROMPT))
    return scores, attend(plan, scores, layer=LAYER)


def written_out(scores: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """softmax(z + added) in rows from 5 on, of causal scores."""
    keys = scores.shape[-1]
    future = torch.ones(keys, keys, dtype=torch.bool).triu(1)
    rows = (torch.arange(keys) >= 5)[:, None]
    return torch.softmax((scores + rows * added).masked_fill(future, -torch.inf), -1)


def test_scores_get_the_weight_times_the_values() -> None:
    scores, found = scores_of(Weighing(start=3, values=[0.5, 0.0, -1.5], weight=2.0))
    added = torch.zeros(14, dtype=torch.float64)
    added[3], added[5] = 1.0, -3.0
    torch.testing.assert_close(found, written_out(scores, added), rtol=1e-6, atol=1e-9)


def test_values_are_of_prompt_positions_and_none_of_classes() -> None:
    """On keys of any class; beside a bias by class, both add."""
    made = builder()
    image = made.tag([(2, 5)])
    slot = made.key_weights(np.array([1.0, 2.0, 3.0]), [(4, 6), (11, 12)])
    made.score(ALL, [image], ROWS, bias=0.5, slot=slot, weight=-1.0)
    plan = made.build()
    assert [(e.classes, e.bias, e.slot, e.weight) for e in plan.scores] == [
        ((1,), 0.5, None, 0.0),
        ((), 0.0, 0, -1.0),
    ]
    scores = torch.randn(4, 13, 13, dtype=torch.float64)
    added = torch.tensor([0, 0, 0.5, 0.5, -0.5, -2, 0, 0, 0, 0, 0, -3, 0])
    wanted = written_out(scores, added.double())
    torch.testing.assert_close(attend(plan, scores, layer=LAYER), wanted, rtol=1e-6, atol=1e-9)


def test_what_adds_nothing_is_no_plan() -> None:
    for neutral in (Weighing(values=[0.0, 0.0]), Weighing(weight=0.0), Weighing(layers=())):
        assert compile_plan([neutral], context_of(PROMPT)) is None
    made = builder()
    made.key_weights(np.ones(2), [(0, 2)])  # that no edit adds
    made.score(ALL, [made.tag([(0, 1)])], ROWS, bias=1.0)
    assert made.build().key_weights == ()


@pytest.mark.parametrize(
    ("values", "spans", "reason"),
    [
        ([1.0], [(11, 13)], "not inside the prompt"),
        ([1.0], [(3, 3)], "not inside the prompt"),
        ([1.0], [(0, 2)], "one value for each position"),
        ([1.0, 1.0, 1.0], [(0, 2)], "one value for each position"),
        ([1.0, 1.0, 1.0], [(0, 2), (1, 2)], "without overlap"),
        ([np.nan, 1.0], [(0, 2)], "numbers"),
        ([np.inf, 1.0], [(0, 2)], "numbers"),
        ([2e6, 1.0], [(0, 2)], "numbers"),
    ],
)
def test_wrong_values_are_mistakes_of_the_method(values, spans, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        builder().key_weights(np.array(values), spans)


def test_slots_exist_and_run_out() -> None:
    made = builder()
    for _ in range(KEY_WEIGHTS):
        made.key_weights(np.ones(1), [(0, 1)])
    with pytest.raises(ValueError, match="at most 4 slots"):
        made.key_weights(np.ones(1), [(0, 1)])
    for wrong in ({"slot": 4}, {"slot": -1}, {"slot": 0, "weight": np.nan}):
        with pytest.raises(ValueError, match="slot"):
            made.score(ALL, [], ROWS, **wrong)


# Several methods


def test_methods_of_the_same_heads_share_a_slot() -> None:
    """However many they are; and each is one of those that act."""
    methods = [Weighing(start=at, values=[1.0, at]) for at in range(6)]
    plan = compile_plan(methods, context_of(PROMPT))
    (slot,) = plan.key_weights
    wanted = np.zeros(12)
    for at in range(6):
        wanted[at : at + 2] += [1.0, at]
    np.testing.assert_array_equal(slot.unpack(12), wanted)
    assert [edit.source for edit in plan.scores] == list(range(6))
    assert [edit.weight for edit in plan.scores] == [1.0, 0, 0, 0, 0, 0]
    scores, found = scores_of(*methods)
    added = torch.zeros(14, dtype=torch.float64)
    added[:12] = torch.from_numpy(wanted)
    torch.testing.assert_close(found, written_out(scores, added), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "other",
    [{"weight": 2.0}, {"layers": (2, 3)}, {"later": True}],
    ids=["weight", "layers", "rule"],
)
def test_methods_of_other_heads_or_weights_have_a_slot_each(other) -> None:
    one, two = Weighing(), Weighing(start=6, values=[3.0], **other)
    for methods in ([one, two], [two, one]):
        plan = compile_plan(methods, context_of(PROMPT))
        assert len(plan.key_weights) == 2
        assert sorted(edit.slot for edit in plan.scores) == [0, 1]
        scores, found = scores_of(*methods)
        added = torch.zeros(14, dtype=torch.float64)
        added[:2] = torch.tensor([1.0, -2.0])
        added[6] = 3.0 * two.weight
        torch.testing.assert_close(found, written_out(scores, added), rtol=1e-6, atol=1e-9)


def test_edits_that_a_rule_holds_find_their_slot() -> None:
    plan = compile_plan([Weighing(), Weighing(later=True)], context_of(PROMPT))
    (held,) = plan.rule(ConfidenceRule).unsure
    assert held.slot == 1


def test_more_ways_than_slots_are_refused() -> None:
    methods = [Weighing(weight=weight) for weight in (1.0, 2.0, 3.0, 4.0)]
    assert compile_plan([*methods, *methods], context_of(PROMPT))
    with pytest.raises(InterventionError, match="in more than 4 ways together") as caught:
        compile_plan([*methods, Weighing(weight=5.0)], context_of(PROMPT))
    assert (caught.value.code, caught.value.param) == (Code.CONFLICT, "interventions[4]")


# Branches, and the way to the engine


def test_in_a_branch_they_move_with_their_tokens() -> None:
    plan = Weighing(start=1, values=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).compile(context_of(PROMPT))
    without = deleted_plan(plan, [(2, 5)])
    (slot,) = without.key_weights
    assert slot.unpack(9).tolist() == [0, 1, 5, 6, 0, 0, 0, 0, 0]
    assert hidden_plan(plan, [(2, 5)]).key_weights == plan.key_weights
    only = Weighing(start=2, values=[1.0]).compile(context_of(PROMPT))
    (slot,) = deleted_plan(only, [(2, 5)]).key_weights
    assert not slot.unpack(9).any()


def test_they_travel_as_they_are() -> None:
    plan = Weighing(start=3).compile(context_of(PROMPT))
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan)
    assert sent == plan
    assert sent.tags_key() == plan.tags_key()
    other = Weighing(start=4).compile(context_of(PROMPT))
    assert other.program_keys == plan.program_keys  # one row of the tables is both's
    assert other.tags_key() != plan.tags_key()
    assert replace(plan, key_weights=()).tags_key() not in (plan.tags_key(), other.tags_key())


@given(st.lists(st.sampled_from([0.0, 1.5, -2.25]), max_size=40))
@settings(deadline=None, max_examples=50)
def test_packed_values_are_what_they_were(values: list[float]) -> None:
    array = np.array(values, np.float32)
    packed = KeyWeights.pack(array)
    np.testing.assert_array_equal(packed.unpack(len(array)), array)
    np.testing.assert_array_equal(packed.unpack(packed.end), array[: packed.end])
    assert len(packed.data) == 4 * np.count_nonzero(array)
