"""What is kept of decoding sequences follows them: pages, requests, and who comes and goes."""

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from saccade_server.engine.batch import PromptPositions
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.sampler import DrawKind, numbers, uniforms
from saccade_server.engine.seats import ALWAYS, Seats, Wants
from saccade_server.engine.sequence import Sequence

WIDTH = 6


def positions(sequence: Sequence) -> PromptPositions:
    return PromptPositions(np.zeros((1, 3), np.int64), delta=sequence.prompt_length)


def sequence(length: int = 3, **sampling: Any) -> Sequence:
    p = SamplingParams(max_tokens=100, **sampling)
    made = Sequence(GenerateRequest(request_id="r", tokens=tuple(range(length)), sampling=p))
    made.append(1)
    made.pages, made.computed = [7, 8], length
    return made


def chunks(*sequences: Sequence) -> list[Chunk]:
    return [Chunk.of(made, 1) for made in sequences]


def pages(seats: Seats, used: int, *sequences: Sequence) -> list[list[int]]:
    roster = seats.roster(chunks(*sequences))
    return seats.pages(roster, np.full(len(sequences), used)).tolist()


def test_numbers_are_the_first_of_each_position() -> None:
    for seed in (0, 7, -1, 2**63, 2**64 - 1):
        for position in (0, 5, 1000):
            wanted = [next(uniforms(seed, position + i)) for i in range(9)]
            assert numbers(seed, position, 9).tolist() == wanted


def test_a_roster_is_made_again_only_if_something_changed() -> None:
    seats, a, b = Seats(4, WIDTH, positions), sequence(), sequence()
    first = seats.roster(chunks(a, b))
    a.computed += 1
    a.append(4)
    assert seats.roster(chunks(a, b)) is first
    assert seats.roster(chunks(b, a)).seats.tolist() == first.seats[::-1].tolist()
    before = seats.roster(chunks(a, b))
    a.request = replace(a.request, sampling=replace(a.request.sampling, temperature=0.0))
    changed = seats.roster(chunks(a, b))
    assert changed is not before
    assert changed.draws[DrawKind.FREE].tolist() == [1]
    b.preemptions += 1
    assert seats.roster(chunks(a, b)) is not changed


def test_pages_are_written_once_and_anew_after_preemption() -> None:
    seats, made = Seats(2, WIDTH, positions), sequence()
    assert pages(seats, 1, made) == [[7, 0, 0, 0, 0, 0]]
    made.pages = [9, 8, 5]  # the first is written and cannot change while it is held
    assert pages(seats, 3, made) == [[7, 8, 5, 0, 0, 0]]
    made.preemptions += 1
    assert pages(seats, 2, made) == [[9, 8, 0, 0, 0, 0]]


def test_a_seat_that_is_handed_on_keeps_nothing() -> None:
    seats, first, second = Seats(1, WIDTH, positions), sequence(seed=3), sequence(5, seed=4)
    first.pages, first.tag_row = [1, 2, 3], 6
    roster = seats.roster(chunks(first))
    assert pages(seats, 3, first) == [[1, 2, 3, 0, 0, 0]]
    rows, at = np.array([0]), np.array([1])
    assert seats.uniforms(roster, rows, at) == next(uniforms(3, 1))
    seats.forget(first)
    roster = seats.roster(chunks(second))
    assert pages(seats, 1, second) == [[7, 0, 0, 0, 0, 0]]
    assert seats.uniforms(roster, rows, at) == next(uniforms(4, 1))
    assert (roster.tag_rows, roster.delta, roster.prompt_lengths) == (0, 5, 5)


def test_preempted_sequences_leave_their_seats_to_those_that_run() -> None:
    seats = Seats(2, WIDTH, positions)
    made = [sequence(seed=seed) for seed in range(4)]
    for pair in ((0, 1), (2, 3), (1, 2), (0, 3)):
        some = [made[index] for index in pair]
        roster = seats.roster(chunks(*some))
        assert sorted(roster.seats.tolist()) == [0, 1]
        found = seats.uniforms(roster, np.arange(2), np.array([1, 1])).tolist()
        assert found == [next(uniforms(index, 1)) for index in pair]


def test_nothing_is_kept_of_those_who_are_forgotten() -> None:
    seats, made = Seats(2, WIDTH, positions), sequence()
    seats.roster(chunks(made))
    seats.forget(made)
    seats.forget(made)
    assert seats._roster is None
    assert seats._requests == [None, None]
    assert sorted(seats._free) == [0, 1]


@pytest.mark.parametrize(
    ("sampling", "until"),
    [
        ({}, 0),
        ({"logprobs": 2}, 0),
        ({"min_tokens": 3}, 3),
        ({"forced": (1, 2), "min_tokens": 1}, 2),
        ({"logit_bias": {1: 1.0}}, ALWAYS),
        ({"repetition_penalty": 1.1, "min_tokens": 3}, ALWAYS),
        ({"frequency_penalty": 0.1}, ALWAYS),
    ],
)
def test_who_draws_from_changed_logits(sampling: dict[str, Any], until: int) -> None:
    roster = Seats(1, WIDTH, positions).roster(chunks(sequence(**sampling)))
    assert roster.changed_until.tolist() == [until]
    assert roster.wants == (Wants.LOGPROBS if "logprobs" in sampling else Wants.NOTHING)
