"""Who is next: priorities, fairness between owners, deadlines; and that nobody starves of them."""

import random
from collections.abc import Iterator

import pytest

from saccade_interventions.plan import Plan
from saccade_server.engine.pages import PagePool
from saccade_server.engine.queue import EVERY, WaitingQueue
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.rows import PlanRows
from saccade_server.engine.scheduler import Scheduler
from saccade_server.engine.sequence import Sequence
from saccade_testing.scheduling import NoTables, apart, biased


def waiting(
    owner: str = "",
    priority: int = 0,
    *,
    length: int = 10,
    plan: Plan | None = None,
    deadline: float | None = None,
    branches: int = 0,
) -> Sequence:
    def request() -> GenerateRequest:
        return GenerateRequest(
            request_id="r",
            tokens=tuple(range(length)),
            sampling=SamplingParams(max_tokens=1000),
            owner=owner,
            priority=priority,
            plan=plan,
            deadline=deadline,
        )

    leader = Sequence(request())
    leader.branches += [Sequence(request(), leader=leader) for _ in range(branches)]
    return leader


def admissions(queue: WaitingQueue) -> Iterator[Sequence]:
    while (leader := next(queue.order(), None)) is not None:
        queue.admit(leader)
        yield leader


def names(queue: WaitingQueue, count: int) -> str:
    return "".join(
        leader.request.owner for leader, _ in zip(admissions(queue), range(count), strict=False)
    )


def test_of_one_owner_with_one_priority_the_first_is_first() -> None:
    queue = WaitingQueue()
    leaders = [waiting() for _ in range(3 * EVERY)]
    for leader in leaders:
        queue.add(leader)
    assert list(queue) == leaders == list(queue.order())
    queue.remove(leaders.pop(3))
    assert list(admissions(queue)) == leaders
    assert not queue
    assert not queue._lines


def test_the_lower_priority_goes_first_but_for_one_turn_in_several() -> None:
    queue = WaitingQueue()
    late, usual = waiting(priority=5), [waiting() for _ in range(2)]
    urgent = [waiting(priority=-1) for _ in range(2 * EVERY)]
    for leader in (late, *usual, *urgent):
        queue.add(leader)
    order = list(admissions(queue))
    assert order[: EVERY - 1] == urgent[: EVERY - 1]
    assert order[EVERY - 1] is late
    assert order[2 * EVERY - 1] is usual[0]
    rest = [leader for leader in order if leader is not late and leader is not usual[0]]
    assert rest == [*urgent, usual[1]]


def test_the_turn_without_priorities_is_fair_between_owners_too() -> None:
    queue = WaitingQueue()
    for _ in range(2 * EVERY):
        queue.add(waiting("a", 5))
        queue.add(waiting("c", -5))
    queue.add(waiting("b", 9))
    assert names(queue, 2 * EVERY) == "ccccccca" + "cccccccb"


def test_who_was_preempted_comes_first_whatever_its_priority() -> None:
    queue = WaitingQueue()
    first, second = waiting(priority=9), waiting()
    queue.add(waiting(priority=-9))
    queue.put_back(second)
    queue.put_back(first)  # the youngest is preempted first, so the oldest is put back last
    assert list(queue.order())[:2] == [first, second]
    assert first in queue
    queue.remove(first)
    assert first not in queue
    queue.admit(second)
    assert len(queue) == 1


def test_owners_take_turns_by_the_work_that_they_had() -> None:
    """A prompt three times as long is three turns."""
    queue = WaitingQueue()
    for _ in range(30):
        queue.add(waiting("a", length=10))
    for _ in range(10):
        queue.add(waiting("b", length=30))
    taken = names(queue, 24)
    assert taken.count("a") == pytest.approx(18, abs=2)
    assert taken.count("b") == pytest.approx(6, abs=2)


def test_answers_are_work_too() -> None:
    queue = WaitingQueue()
    for _ in range(20):
        queue.add(waiting("a"))
        queue.add(waiting("b"))
    running = [next(admissions(queue)) for _ in range(2)]
    talks = next(leader for leader in running if leader.request.owner == "a")
    talks.tokens += [0] * 30  # two a token: six prompts' worth
    queue.settle(running)
    queue.settle(running)  # charged once
    assert names(queue, EVERY - 3) == "b" * (EVERY - 3)
    assert queue._work["a"] == 70


def test_nobody_saves_work_up() -> None:
    """An owner that comes late is not ahead of who has waited by all that it did not ask for."""
    queue = WaitingQueue()
    for _ in range(50):
        queue.add(waiting("a"))
    assert names(queue, 20) == "a" * 20
    for _ in range(50):
        queue.add(waiting("b"))
    taken = names(queue, 20)
    assert 9 <= taken.count("b") <= 11
    for leader in [leader for leader in queue if leader.request.owner == "b"]:
        queue.remove(leader)
    names(queue, 10)  # the other's work grows meanwhile
    for _ in range(10):
        queue.add(waiting("b"))
    assert 4 <= names(queue, 10).count("b") <= 6


def test_nobody_saves_work_up_while_nobody_waits() -> None:
    queue = WaitingQueue()
    for _ in range(20):
        queue.add(waiting("a"))
        assert names(queue, 1) == "a"
    for owner in "ba" * 10:
        queue.add(waiting(owner))
    assert 4 <= names(queue, 10).count("b") <= 6


def test_tokens_of_branches_are_work() -> None:
    queue = WaitingQueue()
    for branches in (0, 1):
        leader = waiting(str(branches), branches=branches)
        queue.add(leader)
        queue.admit(leader)
        before = queue._work[str(branches)]
        leader.tokens += [0] * 5
        queue.settle([leader])
        assert queue._work[str(branches)] - before == 2 * 5 * (1 + branches)


def test_shared_prefixes_cost_nothing() -> None:
    queue = WaitingQueue()
    found, computed = waiting("a", length=100), waiting("b", length=100)
    found.cached_tokens = 90
    for leader in (found, computed):
        queue.add(leader)
        queue.admit(leader)
    assert queue._work["b"] - queue._work["a"] == 90


def test_many_owners_are_not_remembered_for_ever() -> None:
    queue = WaitingQueue()
    for number in range(5000):
        leader = waiting(str(number))
        queue.add(leader)
        queue.admit(leader)
    assert len(queue._work) < 1100


def test_whose_deadline_passes_is_late_and_nobody_else() -> None:
    queue = WaitingQueue()
    never, soon, later = waiting(), waiting(deadline=5.0), waiting(deadline=7.0)
    for leader in (never, soon, later):
        queue.add(leader)
    back = waiting(deadline=6.0)
    queue.put_back(back)
    assert queue.late(4.9) == []
    assert queue.late(5.0) == [soon]
    queue.remove(soon)
    assert queue.late(6.5) == [back]
    queue.remove(back)
    assert queue.late(6.9) == []
    assert queue.late(7.5) == [later]
    queue.remove(later)
    assert queue.late(1e9) == []
    assert queue._soonest == float("inf")
    queue.put_back(back)
    assert queue.late(6.0) == [back]


class Crowd:
    """A scheduler under random requests, which end after random numbers of tokens."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        pages, seats = self.rng.randint(8, 40), self.rng.randint(2, 6)
        rows = PlanRows(NoTables(), self.rng.randint(4, 6), seats + 1)
        self.made = Scheduler(PagePool(pages), rows, seats, 200, self.rng.random() < 0.5)
        self.lengths: dict[Sequence, int] = {}
        self.came: dict[Sequence, int] = {}
        self.took: list[int] = []
        self.seats = seats
        self.step = 0

    def come(self, owner: str, priority: int) -> None:
        kind = self.rng.random()
        length = self.rng.randint(2, 180)
        plan = None
        if kind < 0.3:
            plan = biased(length, self.rng.choice((1.0, 2.0, 3.0)))
        elif kind < 0.4:
            plan = apart(length)
        branches = self.rng.randint(0, 1) if plan is None else 0
        leader = waiting(owner, priority, length=length, plan=plan, branches=branches)
        self.lengths[leader] = length + self.rng.randint(1, 60)
        self.came[leader] = self.step
        self.made.add(leader)

    def advance(self) -> None:
        made = self.made
        self.step += 1
        chunks = made.schedule()
        assert chunks or not made.running, "what runs gets on"
        assert sum(1 + len(leader.branches) for leader in made.running) <= self.seats
        made.start(chunks)
        for chunk in chunks:
            made.complete(chunk)
        for chunk in chunks:
            if not chunk.draws:
                continue
            leader = chunk.sequence
            for member in leader.group:
                member.append(0)
            if len(leader.tokens) >= self.lengths[leader]:
                made.remove(leader)
                del self.lengths[leader]
                self.took.append(self.step - self.came.pop(leader))

    @property
    def longest(self) -> int:
        """Steps that the request has been here that has been here longest."""
        return self.step - min(self.came.values(), default=self.step)


@pytest.mark.parametrize("seed", range(12))
def test_nobody_starves(seed: int) -> None:
    """However many more urgent ones, and of other owners, keep coming; and all is free at the end.

    A request that comes to a queue of ``n`` is the longest waiting after ``n`` turns at most.
    """
    crowd = Crowd(seed)
    for _ in range(5):
        crowd.come(crowd.rng.choice("ab"), crowd.rng.randint(0, 9))
    behind = [leader for leader in crowd.lengths if leader.request.priority >= 0]
    for _ in range(4000):
        while len(crowd.made.waiting) < 10:
            crowd.come("c", -5)
        crowd.advance()
        if not any(leader in crowd.lengths for leader in behind):
            break
    assert not [leader for leader in behind if leader in crowd.lengths]
    for _ in range(6000):
        if not crowd.lengths:
            break
        crowd.advance()
    assert not crowd.lengths
    made = crowd.made
    assert (made.pages.usage, len(made.waiting), len(made.running)) == (0, 0, 0)
    assert made.rows.programs == 0
    assert not made.waiting._lines


@pytest.mark.parametrize("seed", range(6))
def test_owners_who_always_wait_get_equal_work(seed: int) -> None:
    rng = random.Random(seed)
    made = Scheduler(PagePool(400), PlanRows(NoTables(), 5, 9), 8, 400, False)
    sizes = {"a": (10, 5), "b": (200, 40), "c": (40, 200)}  # prompts and answers
    ends: dict[Sequence, int] = {}
    had = dict.fromkeys(sizes, 0)
    for step in range(6000):
        while len(made.waiting) < 24:
            owner = min(sizes, key=lambda name: sum(w.request.owner == name for w in made.waiting))
            prompt, answer = (max(1, rng.randint(n // 2, 3 * n // 2)) for n in sizes[owner])
            leader = waiting(owner, length=prompt)
            ends[leader] = prompt + answer
            made.add(leader)
        chunks = made.schedule()
        made.start(chunks)
        for chunk in chunks:
            made.complete(chunk)
            leader = chunk.sequence
            if step > 500:
                prompt = leader.prompt_length
                had[leader.request.owner] += chunk.length if chunk.start < prompt else 2
            if chunk.draws:
                leader.append(0)
                if len(leader.tokens) >= ends[leader]:
                    made.remove(leader)
    mean = sum(had.values()) / len(had)
    assert all(abs(work - mean) < 0.2 * mean for work in had.values()), had


def test_the_least_urgent_is_preempted_but_only_once_for_that() -> None:
    made = Scheduler(PagePool(5), PlanRows(NoTables(), 5, 5), 4, 500, False)
    old, usual, young = waiting(priority=3, length=63), waiting(length=63), waiting(length=63)
    for leader in (old, usual, young):
        made.add(leader)
    made.running = []
    for _ in range(3):  # all have a page, and four are there
        chunks = made.schedule()
        made.start(chunks)
        for chunk in chunks:
            made.complete(chunk)
            if chunk.samples:
                chunk.sequence.append(0)
    assert set(made.running) == {usual, young}
    assert list(made.waiting) == [old]
    assert old.preemptions == 1
    made.running.insert(1, old)
    assert made._least_urgent() is young
