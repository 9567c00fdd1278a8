"""Scheduling decisions, without a model."""

from typing import Any

import pytest

from saccade_interventions.plan import Plan
from saccade_server.engine.pages import PagePool
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.rows import PlanRows
from saccade_server.engine.scheduler import Scheduler
from saccade_server.engine.sequence import Sequence
from saccade_testing.scheduling import NoTables, apart, biased


def scheduler(
    pages: int = 20, seqs: int = 4, budget: int = 100, caching: bool = True, programs: int = 4
) -> Scheduler:
    rows = PlanRows(NoTables(), programs + 1, 5)
    return Scheduler(PagePool(pages), rows, seqs, budget, caching)


def sequence(length: int, start: int = 0, plan: Plan | None = None) -> Sequence:
    tokens = tuple(range(start, start + length))
    sampling = SamplingParams(max_tokens=1000)
    return Sequence(GenerateRequest(request_id="r", tokens=tokens, sampling=sampling, plan=plan))


def advance(made: Scheduler) -> list[tuple[int, int]]:
    """One step: every sequence that reaches its last token gets another. (start, length)s."""
    chunks = made.schedule()
    made.start(chunks)
    for chunk in chunks:
        made.complete(chunk)
        if chunk.samples:
            chunk.sequence.tokens.append(0)
    return [(chunk.start, chunk.length) for chunk in chunks]


def test_long_prompts_are_cut_to_the_budget_and_decodes_come_first() -> None:
    made = scheduler()
    made.add(sequence(10))
    assert advance(made) == [(0, 10)]
    made.add(sequence(250, start=500))
    assert advance(made) == [(10, 1), (0, 99)]
    assert advance(made) == [(11, 1), (99, 99)]
    assert advance(made) == [(12, 1), (198, 52)]
    assert advance(made) == [(13, 1), (250, 1)]


def test_first_come_first_served_within_the_limits() -> None:
    made = scheduler(seqs=2)
    sequences = [sequence(5, start=10 * i) for i in range(3)]
    for item in sequences:
        made.add(item)
    assert len(made.schedule()) == 2
    assert list(made.waiting) == [sequences[2]]
    made.remove(sequences[0])
    made.schedule()
    assert made.running == sequences[1:]


def test_the_youngest_is_preempted_and_goes_on_later() -> None:
    """Three pages: 63 + 63 tokens fit, then both need a second page and only one is left."""
    made = scheduler(pages=4, caching=False)
    old, young = sequence(63), sequence(63, start=100)
    made.add(old)
    made.add(young)
    assert advance(made) == [(0, 63), (0, 37)]
    assert advance(made) == [(63, 1), (37, 26)]
    assert advance(made) == [(64, 1), (63, 1)]
    assert made.preemptions == 0
    assert advance(made) == [(65, 1)]
    assert made.preemptions == 1
    assert young.pages == []
    assert young.computed == 0
    made.remove(old)
    assert advance(made) == [(0, 65)]


def test_everything_is_free_in_the_end() -> None:
    made = scheduler(pages=9)
    items = [sequence(70, start=i) for i in range(4)]
    for item in items:
        made.add(item)
    for _ in range(30):
        advance(made)
    for item in items:
        made.remove(item)
    assert made.pages.usage == 0
    assert not made.running
    assert not made.waiting


def test_a_shared_prefix_leaves_one_token_to_compute() -> None:
    made = scheduler(budget=500)
    made.add(sequence(128))
    assert advance(made) == [(0, 128)]
    twin = sequence(128)
    made.add(twin)
    assert advance(made) == [(128, 1), (64, 64)]
    assert twin.cached_tokens == 64
    assert made.prefix_hits == 64


def test_what_preemption_lets_a_sequence_find_of_another_is_cached_once() -> None:
    """Up to what it had computed it finds its own."""
    made = scheduler(budget=64)
    item, twin = sequence(200), sequence(200)
    made.add(item)
    assert advance(made) == [(0, 64)]
    made._preempt(item)
    made.waiting.remove(item)
    made.add(twin)
    while twin.pending > 1:
        advance(made)
    made.remove(twin)
    made.add(item)
    for _ in range(2):  # it is preempted again before its step has run
        made.schedule()
        assert (item.computed, item.counted, item.cached_tokens) == (192, 64, 128)
        made._preempt(item)


def test_who_waits_for_rows_is_passed_by_who_holds_them() -> None:
    """Otherwise a sequence that was preempted would hold them for ever, and both would wait."""
    made = scheduler(programs=1, caching=False)
    holder, waits = sequence(10, plan=biased(10, 1.0)), sequence(20, plan=biased(20, 2.0))
    late = sequence(30, plan=biased(30, 3.0))
    made.add(holder)
    advance(made)
    made._preempt(holder)
    made.waiting.put_back(waits)  # as one does whose confidence has changed its plan
    made.add(late)
    assert advance(made) == [(0, 11)]
    assert (made.running, list(made.waiting)) == ([holder], [waits, late])
    made.remove(holder)
    assert advance(made) == [(0, 20)]
    assert list(made.waiting) == [late]


def test_only_who_needs_per_head_classes_waits_for_them() -> None:
    made = scheduler(caching=False)
    first, second, third = (sequence(10, plan=apart(10)) for _ in range(3))
    edited = sequence(20, plan=biased(20, 1.0))
    for item in (first, second, third, edited):
        made.add(item)
    assert advance(made) == [(0, 10), (0, 20)]
    assert (made.running, list(made.waiting)) == ([first, edited], [second, third])
    made.remove(first)
    advance(made)
    assert (made.running, list(made.waiting)) == ([edited, second], [third])


def test_prompts_that_must_be_whole_let_decodes_run_in_every_second_step() -> None:
    made = scheduler(budget=40, caching=False)
    plain = sequence(10)
    made.add(plain)
    advance(made)
    lengths = []
    for number in range(6):
        item = sequence(40, plan=apart(40))
        made.add(item)
        lengths.append([length for _, length in advance(made)])
        if item not in made.running:
            lengths.append([length for _, length in advance(made)])
        assert item in made.running, number
        made.remove(item)
    assert lengths == [[40], *[[1], [40]] * 5]
    assert plain.computed == 10 + 5


@pytest.mark.parametrize("name", ["write_program", "open_tags", "open_per_head"])
def test_rows_that_cannot_be_written_fail_their_sequence_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the queue and holds nothing; who comes behind it is admitted."""
    made = scheduler(programs=2, caching=False)
    plan = biased(10, 1.0) if name == "write_program" else apart(10)
    bad, next_one = sequence(10, plan=plan), sequence(10, plan=plan)

    def fail(*args: Any) -> None:
        raise MemoryError("for the test")

    with monkeypatch.context() as patch:
        patch.setattr(NoTables, name, fail)
        made.add(bad)
        assert made.schedule() == []
    ((failed, words),) = made.failed
    assert failed is bad
    assert "for the test" in words
    assert not made.waiting
    made.remove(bad)
    rows = made.rows
    assert (rows.programs, rows.free_per_head_classes, bad.tag_row, bad.control_rows) == (
        0,
        1,
        0,
        {},
    )
    assert (len(rows._free_controls), len(rows._free_tags)) == (2, 4)
    made.add(next_one)
    assert advance(made) == [(0, 10)]
