"""How long a newcomer would wait, and who is refused for it."""

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from saccade_server.api.backlog import Backlog, Ticket
from saccade_server.api.errors import Unavailable
from saccade_server.api.generation import Generation
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.engine.request import EngineOutput, FinishReason
from saccade_server.engine.timing import Timing
from saccade_testing.api.fakes import INFO, FakeEngine

SECOND = Timing(queued=9.0, prompt=0.25, decode=0.75)
"""Of a sequence that takes a second, however long it waited."""


def backlog(seats: int = 4, cache_tokens: int = 10**6) -> Backlog:
    made = Backlog(replace(INFO, max_num_seqs=seats, cache_tokens=cache_tokens))
    made.learn(1.0)
    return made


def begun(made: Backlog, count: int, owner: str = "") -> list[Ticket]:
    tickets = [made.enter(owner, 0) for _ in range(count)]
    for ticket in tickets:
        ticket.begun()
    return tickets


def test_nobody_waits_while_there_are_seats() -> None:
    made = backlog()
    assert made.expected("", 0) == 0
    begun(made, 3)
    assert made.expected("", 0) == 0
    assert made.expected("", 0, sequences=2) == pytest.approx(1 / 4)


def test_who_waits_is_ahead_and_a_batch_ends_in_a_second() -> None:
    made = backlog()
    begun(made, 4)
    waiting = [made.enter("", 0) for _ in range(7)]
    assert made.expected("", 0) == pytest.approx(8 / 4)
    waiting.pop().leave()
    assert made.expected("", 0) == pytest.approx(7 / 4)
    waiting.pop().begun()  # it waits no longer, and must end before a newcomer begins
    assert made.expected("", 0) == pytest.approx((5 + 1) / 4)


def test_what_ends_in_the_engine_makes_room_whoever_reads_the_answer() -> None:
    made = backlog()
    tickets = begun(made, 4)
    assert made.expected("", 0) > 0
    tickets[0].ended(SECOND)
    assert made.expected("", 0) == 0
    tickets[0].leave()
    tickets[0].leave()
    assert made.running == 3
    for ticket in tickets:
        ticket.leave()
    assert (made.running, made.waiting.total()) == (0, 0)


def test_an_end_counts_before_anybody_has_read_of_it() -> None:
    made = backlog()
    ticket = made.enter("", 0)
    stands: Any = SimpleNamespace(deadline=None, ticket=ticket)
    engine: Any = FakeEngine()
    generation = Generation(engine, Lifecycle(), (), stands)
    choice: Any = None
    output = EngineOutput(request_id="a", tokens=(1,))
    generation._deliver(choice, output)
    assert (made.running, made.waiting.total()) == (1, 0)
    last = replace(output, finish_reason=FinishReason.STOP, timing=SECOND)
    generation._deliver(choice, last)
    assert (made.running, made.waiting.total()) == (0, 0)


def test_only_what_goes_first_is_waited_for() -> None:
    made = backlog()
    begun(made, 4)
    for owner, priority, count in (("a", 0, 20), ("b", 0, 2), ("c", -1, 3), ("d", 5, 50)):
        for _ in range(count):
            made.enter(owner, priority)
    waits = {
        "a": 3 + 21 + 2,  # the urgent ones, its own, and all that b has
        "b": 3 + 3 + 3,  # as many of a as of its own
        "new": 3 + 1 + 1 + 1,
        "d": 3 + 1 + 1 + 1,
    }
    for owner, ahead in waits.items():
        assert made.expected(owner, 0) == pytest.approx(ahead / 4), owner
    assert made.expected("new", -2) == pytest.approx(1 / 4)


def test_a_full_batch_is_slower_than_a_request_alone() -> None:
    made = Backlog(replace(INFO, max_num_seqs=4, cache_tokens=10**6))
    made.learn(0.1)
    begun(made, 4)
    assert made.expected("", 0) == pytest.approx(0.1 / 4)
    made.learn(2.0)
    made.learn(4.0)
    assert made.expected("", 0) == pytest.approx(3.0 / 4)
    for _ in range(50):
        made.learn(8.0)
    assert made.expected("", 0) == pytest.approx(8.0 / 4, rel=0.01)


def test_a_small_cache_has_fewer_places_than_there_are_seats() -> None:
    made = backlog(seats=8, cache_tokens=1000)
    assert made.places == 8
    begun(made, 1)[0].leave(tokens=[400, 600])
    assert made.places == 2
    begun(made, 2)
    assert made.expected("", 0) == pytest.approx(1 / 2)


def test_a_request_is_refused_once_and_told_when_to_come_back() -> None:
    made = backlog(seats=1)
    begun(made, 1)
    for _ in range(9):
        made.enter("", 0)
    made.check("", 0, 1, patience=10.0)
    with pytest.raises(Unavailable, match=r"about 10\.0 s") as refusal:
        made.check("", 0, 1, patience=7.5)
    assert refusal.value.code == "queue_too_long"
    assert refusal.value.headers["retry-after"] == "3"
    made.check("", -1, 1, patience=1.0)


def test_a_request_that_says_more_of_itself_is_asked_again() -> None:
    made = backlog(seats=1)
    ticket = made.enter("a", 0)
    ticket.revise(0, 3, patience=2.5)
    assert made.waiting[0, "a"] == 3
    with pytest.raises(Unavailable):
        ticket.revise(0, 5, patience=2.5)
    assert made.waiting.total() == 0
    ticket.leave()
    assert made.waiting.total() == made.running == 0


def test_a_request_waits_among_those_of_its_priority() -> None:
    made = backlog(seats=1)
    ticket = made.enter("a", 3)
    assert +made.waiting == {(3, "a"): 1}
    ticket.revise(-2, 2, patience=9.0)
    assert +made.waiting == {(-2, "a"): 2}
    ticket.begun()
    assert not any(made.waiting.values())
    ticket.leave()
    made.enter("b", 7).leave()
    assert not any(made.waiting.values())


ANSWERS: dict[str, Any] = {
    "/v1/completions": {"prompt": "Hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/score": {"prompt": "Hi", "continuations": ["x"]},
}


@pytest.mark.parametrize("path", ANSWERS)
def test_what_would_wait_too_long_is_refused_before_it_is_prepared(path, make_server) -> None:
    server = make_server(max_queue_time=5.0)
    made = server.app.state.services.backlog
    post = server.http.post
    assert post(path, json=ANSWERS[path]).status_code == 200
    assert (made.running, made.waiting.total()) == (0, 0)
    assert made.tokens.value >= 2, "how long sequences are is learnt"
    made.learn(1.0)
    made._crowded.value = 1.0
    tickets = begun(made, INFO.max_num_seqs)
    tickets += [made.enter("", 0) for _ in range(5 * INFO.max_num_seqs)]
    answered = post(path, json=ANSWERS[path])
    assert answered.status_code == 503
    assert answered.json()["error"]["code"] == "queue_too_long"
    assert answered.headers["retry-after"] == "1"
    assert post(path, json=ANSWERS[path] | {"priority": 1}).status_code == 503
    assert post(path, json=ANSWERS[path] | {"priority": -1}).status_code == 200
    assert server.http.post("/tokenize", json={"prompt": "Hi"}).status_code == 200
    for ticket in tickets:
        ticket.leave()
    assert post(path, json=ANSWERS[path]).status_code == 200
    assert (made.running, made.waiting.total()) == (0, 0)


@pytest.mark.parametrize("path", ANSWERS)
def test_what_is_refused_later_waits_no_longer(path, make_server) -> None:
    server = make_server()
    for wrong in ({"model": "other"}, {"priority": "x"}, {"interventions": [{"method": "no"}]}):
        assert server.http.post(path, json=ANSWERS[path] | wrong).status_code in (400, 404)
    assert not any(server.app.state.services.backlog.waiting.values())


def test_nobody_is_let_in_to_wait_longer_than_it_has(make_server) -> None:
    server = make_server()
    made = server.app.state.services.backlog
    made._crowded.value = 1.0
    tickets = begun(made, INFO.max_num_seqs)
    tickets += [made.enter("", 0) for _ in range(3 * INFO.max_num_seqs)]
    path, body = "/v1/completions", {"prompt": "Hi"}
    assert server.http.post(path, json=body).status_code == 200
    short = server.http.post(path, json=body, headers={"x-request-timeout": "2.5"})
    assert (short.status_code, short.json()["error"]["code"]) == (503, "queue_too_long")
    for ticket in tickets:
        ticket.leave()
