"""The counter of interventions that acted on nothing: zero, and not blind."""

from dataclasses import dataclass, replace

import pytest

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import Phase
from saccade_interventions.registry import Registry
from saccade_interventions.rules import ContrastRule, MeasuredGains, MeasuredHeads, RecentRule
from saccade_server.engine.request import Counter, Receipt
from saccade_server.requests.noops import noops
from saccade_server.requests.receipts import Run

REGISTRY = Registry.discover()
PASTA = {"method": "pasta", "spans": [[0, 2]], "layers": [1], "alpha": 0.5}
FACTS = ModelFacts(layers=2, heads=2, kv_heads=2, head_dim=4, hidden_size=8)


@dataclass
class Ended:
    run: Run
    completion_tokens: int

    @property
    def last_row(self) -> int:
        """Behind a prompt of six tokens, whose last row the first token is drawn from."""
        return 4 + self.completion_tokens if self.completion_tokens else -1


def compiled(**fields):
    interventions = REGISTRY.parse([{**PASTA, **fields}])
    offsets = tuple((i, i + 1) for i in range(6))
    return interventions, compile_plan(
        interventions, Context(FACTS, Prompt(6, (), "abcdef", offsets))
    )


def lost(interventions, plan, generated, rows=None, counters=()):
    receipt = None if rows is None else Receipt(rows, (), counters)
    return noops(interventions, [Ended(Run(plan, receipt), generated)])


def test_rows_that_were_there_and_are_not_in_the_receipt():
    interventions, plan = compiled()
    assert lost(interventions, plan, 3, {}) == ["pasta"]
    assert lost(interventions, plan, 3, {Phase.QUESTION: 5}) == []
    assert lost(interventions, plan, 3, {Phase.PREFIX: 0}) == ["pasta"]


@pytest.mark.parametrize(
    ("rows", "generated", "expected"),
    [
        ("generated", 0, []),
        ("generated", 1, []),  # the first token is predicted by the prompt's last row
        ("generated", 2, ["pasta"]),
        ("last", 1, ["pasta"]),
        ("last", 0, []),
        ("question", 1, ["pasta"]),
    ],
)
def test_rows_that_were_never_there_are_no_fault(rows, generated, expected):
    interventions, plan = compiled(rows=rows)
    assert lost(interventions, plan, generated, {}) == expected


def test_what_does_not_act_or_was_not_confirmed_is_not_counted():
    interventions, plan = compiled(alpha=1)
    assert plan is None
    assert lost(interventions, plan, 3, {}) == []
    interventions, plan = compiled()
    assert lost(interventions, plan, 3) == []


def test_a_rule_is_known_by_its_counters():
    interventions, plan = compiled()
    plan = replace(plan, scores=()).with_rules(ContrastRule(2.0, 1.0, 0.1))
    assert lost(interventions, plan, 2, {Phase.LAST: 1}) == ["pasta"]
    assert lost(interventions, plan, 2, {}, (Counter(0, "contrasted", 0),)) == ["pasta"]
    assert lost(interventions, plan, 2, {}, (Counter(1, "contrasted", 2),)) == ["pasta"]
    assert lost(interventions, plan, 2, {}, (Counter(0, "contrasted", 2),)) == []
    assert lost(interventions, plan, 0, {}) == []


def test_a_rule_that_measures_is_known_by_what_it_found():
    interventions, plan = compiled()
    rule = MeasuredGains((1,), 2.0, (Phase.GENERATED,))
    plan = replace(plan, scores=()).with_rules(rule)
    assert lost(interventions, plan, 1, {}) == ["pasta"]
    found = Receipt({}, findings=(MeasuredHeads(((1, ()),), source=0),))
    assert noops(interventions, [Ended(Run(plan, found), 1)]) == []


def test_a_rule_about_keys_is_known_by_the_rows_of_its_edits():
    interventions, plan = compiled(rows="generated")
    plan = plan.with_rules(RecentRule(4, 2, ((0, 1),)))
    assert lost(interventions, plan, 1, {Phase.LAST: 1}) == []
    assert lost(interventions, plan, 3, {Phase.LAST: 1}) == ["pasta"]
    assert lost(interventions, plan, 3, {Phase.GENERATED: 2}) == []


def test_each_sequence_counts():
    interventions, plan = compiled()
    good, bad = (Ended(Run(plan, Receipt(rows)), 3) for rows in ({Phase.QUESTION: 5}, {}))
    assert noops(interventions, [good, bad, bad]) == ["pasta", "pasta"]
