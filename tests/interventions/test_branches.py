"""Plans of branches: edits follow the rows and keys that are left, choices stay behind."""

import numpy as np
import pytest

from saccade_interventions.branches import deleted_plan, hidden_plan
from saccade_interventions.builder import PlanBuilder
from saccade_interventions.phases import Phase, parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import (
    Branch,
    ConfidenceRule,
    ContrastRule,
    MeasuredGains,
    RecentRule,
    SaliencyRule,
    SinkRule,
)
from saccade_kernels.controls import NEVER_ATTEND, ControlShape

IMAGES = ((2, 5), (6, 8))
EVERY = parse_rows("prompt+generated")


def made(length: int = 12) -> Plan:
    """Class 1: the images; class 2: the text before, between and behind them."""
    builder = PlanBuilder(ControlShape(2, 2, 4), length, 8)
    image, text = builder.tag(IMAGES), builder.tag([(1, 2), (5, 6), (9, 11)])
    builder.score(((1, (0,)),), [image], EVERY, bias=1.0)
    builder.mass(((0, (1,)),), [(text, image, 0.5), (image, image, -0.5)], EVERY)
    builder.head(((1, (1,)),), parse_rows("question"), 2.0)
    builder.tag_generated(text)
    return builder.build()


def test_tags_and_phases_move_with_their_tokens() -> None:
    plan = made()
    kept = [0, 1, 5, 8, 9, 10, 11]
    branch = deleted_plan(plan, IMAGES)
    assert branch is not None
    assert branch.prompt_length == 7
    assert branch.base_tags().tolist() == plan.base_tags()[kept].tolist()
    phases = [branch.phase(position) for position in range(9)]
    assert phases == [plan.phase(position) for position in [*kept, 12, 13]]
    assert branch.edits == plan.edits
    assert branch.generated_tag == plan.generated_tag
    assert [branch.program_key(p) for p in Phase] == [plan.program_key(p) for p in Phase]


def test_an_image_first_and_last() -> None:
    builder = PlanBuilder(ControlShape(2, 2, 4), 6, 6)
    builder.head(((1, (1,)),), parse_rows("last"), 2.0)
    branch = deleted_plan(builder.build(), [(0, 2), (4, 6)])
    assert branch is not None
    assert [branch.phase(p) for p in range(3)] == [Phase.PREFIX, Phase.LAST, Phase.GENERATED]


def test_nothing_left_to_do_is_no_plan() -> None:
    builder = PlanBuilder(ControlShape(2, 2, 4), 12, 8)
    builder.rule(MeasuredGains((0,), 2.0, EVERY))
    assert deleted_plan(builder.build(), IMAGES) is None


def test_nothing_left_of_the_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing of the prompt"):
        deleted_plan(made(), [(0, 12)])


def test_hidden_keys_are_hidden_and_the_rest_is_as_it_was() -> None:
    plan = made()
    branch = hidden_plan(plan, IMAGES)
    hidden = np.isin(np.arange(12), [2, 3, 4, 6, 7])
    assert branch.hides
    assert (branch.base_tags()[hidden] == NEVER_ATTEND).all()
    assert (branch.base_tags()[~hidden] == plan.base_tags()[~hidden]).all()
    assert branch.edits == plan.edits
    assert branch.question_start == plan.question_start


def test_what_chooses_or_measures_is_the_request_s_own() -> None:
    sinks = SinkRule(1.0, (0,), (0, 1), ((1, 2),))
    plan = made().with_rules(
        sinks,
        RecentRule(4, 9, ((1, 2),)),
        MeasuredGains((0,), 2.0, EVERY),
        ContrastRule(2.0, 1.0, 0.1, branch=Branch("deleted")),
        SaliencyRule((0,), 2, 2, 0.5, 4),
        ConfidenceRule(0.5, (), ()),
    )
    for branch in (deleted_plan(plan, IMAGES), hidden_plan(plan, IMAGES)):
        assert branch is not None
        assert [type(rule) for rule in branch.rules] == [SinkRule, RecentRule]
        assert branch.rule(SinkRule) == sinks


@pytest.mark.parametrize(("start", "moved"), [(0, 0), (3, 2), (9, 4), (12, 7), (15, 10)])
def test_recent_keys_start_where_they_did(start: int, moved: int) -> None:
    plan = made().with_rules(RecentRule(4, start, ((1, 2),)))
    branch = deleted_plan(plan, IMAGES)
    assert branch is not None
    assert branch.rule(RecentRule) is not None
    assert branch.rule(RecentRule).start == moved
