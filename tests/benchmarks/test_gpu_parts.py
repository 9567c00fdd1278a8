"""Every part of the GPU's measurement on a CPU, with tiny shapes: a typo must not cost a GPU."""

import importlib
import json
import time

import pytest
import torch
from gpu import plan, targets
from gpu.ceilings import measure_ceilings
from gpu.serving import Bench
from gpu.session import FAULT, Session
from gpu.shapes import MODELS
from gpu.store import faulty

from saccade_kernels.gpu import tiles

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

ELSEWHERE = ("tests", "start")
"""Parts that start processes of their own."""

SLOW = ("flex", "llava_methods", "llava_options", "llava_peers", "qwen_methods")


def session(**more):
    return Session(deadline=time.time() + 600, dry=True, **more)


@pytest.fixture(scope="module")
def ceilings():
    found = {}
    measure_ceilings(session(), found)
    return found


@pytest.fixture(scope="module")
def benches():
    """Models by name, made once."""
    torch.set_num_threads(1)
    return {name: Bench(name, tiny) for name, (_, tiny) in MODELS.items()}


def run(part, current, benches):
    module, _, function = part.run.partition(":")
    bench = [benches[part.model]] if part.model else []
    with torch.no_grad():
        getattr(importlib.import_module(module), function)(current, current.figures, *bench)


IN_PROCESS = [part for part in plan.PARTS if part.name not in ELSEWHERE]


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch):
    """The reference in the kernels' place, not kernels in Triton's interpreter, which take long."""
    monkeypatch.setattr(tiles, "interpreted", lambda: False)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, id=part.name, marks=[pytest.mark.long] * (part.name in SLOW))
        for part in IN_PROCESS
    ],
)
def test_a_part_runs(part, ceilings, benches, reference):
    check(part, ceilings, benches)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "part", [part for part in IN_PROCESS if part.roots == plan.KERNELS], ids=lambda part: part.name
)
def test_a_part_runs_on_the_kernels_themselves(part, ceilings, benches):
    check(part, ceilings, benches)


def errors(found):
    """What could not be timed."""
    if isinstance(found, dict):
        if isinstance(found.get("error"), str):
            yield found["error"]
        for value in found.values():
            yield from errors(value)


def check(part, ceilings, benches):
    current = session(known={"ceilings": ceilings})
    run(part, current, benches)
    assert current.figures
    assert faulty(current.figures) == []
    assert list(errors(current.figures)) == []
    assert current.left_out == []
    json.dumps(current.figures)
    wanted = {goal.name for goal in targets.GOALS.get(part.name, ())}
    assert set(current.values) <= wanted


def test_a_part_goes_on_behind_what_it_has(ceilings, benches):
    have = {"1x40": {"ms": 5.0, "goals": {}}}
    current = session(known={"ceilings": ceilings}, figures=have)
    run(next(p for p in plan.PARTS if p.name == "llava_steps"), current, benches)
    assert current.figures["1x40"] == {"ms": 5.0, "goals": {}}
    assert "0% edited" in current.figures["4x70"]


def test_floors_need_no_part_before(benches):
    current = session()
    run(next(p for p in plan.PARTS if p.name == "llava_prompts"), current, benches)
    assert "matmul" in current.known["ceilings"]
    assert "ceilings" not in current.figures


def test_an_entry_that_fails_keeps_nothing_else_from_being_measured():
    current = session()
    assert current.measure(current.figures, "bad", 0, lambda cell: 1 / 0) is None
    assert "ZeroDivisionError" in current.figures["bad"][FAULT]
    assert current.measure(current.figures, "bad", 0, lambda cell: cell.update(ms=1)) is None
    assert current.measure(current.figures, "good", 0, lambda cell: cell.update(ms=1)) == {"ms": 1}


def test_an_entry_without_time_is_left_out():
    current = Session(deadline=time.time() + 5, dry=False)
    assert current.measure(current.figures, "long", 60, lambda cell: None) is None
    assert current.left_out == ["long"]
    assert current.figures == {}


def test_of_several_entries_the_worst_counts_and_a_failed_one_does_not():
    name = targets.EDITED.format("llava")
    current = session()

    def reach(cell, value):
        current.reach(name, value)
        if value > 2:
            raise ValueError

    for value in (1.01, 1.05, 3.0):
        current.measure(current.figures, str(value), 0, lambda cell, v=value: reach(cell, v))
    assert current.values == {name: 1.05}
    later = session(figures=current.figures)
    assert later.values == {name: 1.05}


def test_all_goals_have_one_name_each_and_belong_to_parts():
    names = [goal.name for goals in targets.GOALS.values() for goal in goals]
    assert len(names) == len(set(names))
    assert set(targets.GOALS) <= {part.name for part in plan.PARTS}


def test_parts_come_in_the_order_of_their_importance():
    names = [part.name for part in plan.PARTS]
    wanted = ["tests", "llava_steps", "start", "llava_methods", "decode", "llava_peers", "tune"]
    assert [name for name in names if name in wanted] == wanted
    assert names[-1] == "tune"
    assert all(part.least <= part.limit <= 560 for part in plan.PARTS)
    assert len({part.document for part in plan.PARTS}) <= 7, "and a plot: eight files come back"


def test_a_part_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"^no part stps; there are tests, accuracy"):
        plan.chosen(["stps"])
