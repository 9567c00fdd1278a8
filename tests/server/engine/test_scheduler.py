"""Scheduling decisions, without a model."""

from typing import Any

from saccade_server.engine.pages import PagePool
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.rows import PlanRows
from saccade_server.engine.scheduler import Scheduler
from saccade_server.engine.sequence import Sequence


class NoTables:
    """No plan is used here."""

    def write_program(self, row: int, program: Any) -> None: ...

    def open_tags(self, row: int, plan: Any) -> None: ...


def scheduler(pages: int = 20, seqs: int = 4, budget: int = 100, caching: bool = True) -> Scheduler:
    return Scheduler(PagePool(pages), PlanRows(NoTables(), 5, 5), seqs, budget, caching)


def sequence(length: int, start: int = 0) -> Sequence:
    tokens = tuple(range(start, start + length))
    sampling = SamplingParams(max_tokens=1000)
    return Sequence(GenerateRequest(request_id="r", tokens=tokens, sampling=sampling))


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
