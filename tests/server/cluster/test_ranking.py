"""Which replica a key belongs to, and when it goes elsewhere."""

import math
import random
from collections import Counter

import pytest

from saccade_server.cluster.ranking import SLACK, bound, choose, ranked

NAMES = [f"replica-{number}" for number in range(5)]
KEYS = [f"{random.Random(7).getrandbits(64) ^ number:016x}" for number in range(4000)]


def test_keys_are_spread_evenly() -> None:
    owners = Counter(ranked(key, NAMES)[0] for key in KEYS)
    mean = len(KEYS) / len(NAMES)
    # Five deviations of a binomial distribution.
    assert all(abs(count - mean) < 5 * math.sqrt(mean * 0.8) for count in owners.values())


def test_the_order_does_not_depend_on_the_order_of_names() -> None:
    shuffled = random.Random(1).sample(NAMES, len(NAMES))
    assert all(ranked(key, NAMES) == ranked(key, shuffled) for key in KEYS[:100])


def test_a_replica_that_leaves_moves_its_own_keys_only() -> None:
    left = NAMES[:-1]
    for key in KEYS[:500]:
        before, after = ranked(key, NAMES), ranked(key, left)
        assert after == [name for name in before if name != NAMES[-1]]


@pytest.mark.parametrize(
    ("loads", "room", "expected"),
    [
        ({}, 8, 8),
        ({"a": 0, "b": 0}, 8, 8),
        ({"a": 40, "b": 0}, 8, math.ceil(SLACK * 41 / 2)),
        ({"a": 20, "b": 20, "c": 20}, 8, math.ceil(SLACK * 61 / 3)),
    ],
)
def test_the_bound_is_the_room_or_a_share_of_the_load(
    loads: dict[str, int], room: int, expected: int
) -> None:
    assert bound(loads, room) == expected


def test_a_key_keeps_its_replica_up_to_the_bound_and_goes_to_the_next() -> None:
    key = KEYS[0]
    first, second, *_ = ranked(key, NAMES)
    loads = dict.fromkeys(NAMES, 0)
    assert choose(key, {**loads, first: 7}, 8)[0] == [first]
    assert choose(key, {**loads, first: 8}, 8)[0] == [second]
    # All have as much: nobody is over a share, whatever the room.
    assert choose(key, dict.fromkeys(NAMES, 100), 8)[0] == [first]


def test_everybody_is_the_last_resort_and_the_only_one_without_a_key() -> None:
    loads = dict.fromkeys(NAMES, 3)
    assert choose(KEYS[0], loads, 8)[-1] == NAMES
    assert choose(None, loads, 8) == [NAMES]


def test_the_late_come_last() -> None:
    key = KEYS[0]
    first, second, *_ = ranked(key, NAMES)
    ranks = choose(key, dict.fromkeys(NAMES, 0), 8, frozenset({first}))
    assert ranks[0] == [second]
    assert ranks[-1] == [first]
    assert all(first not in rank for rank in ranks[:-1])
    assert choose(key, dict.fromkeys(NAMES, 0), 8, frozenset(NAMES)) == [NAMES]


def test_no_replica_has_more_than_its_share_however_uneven_the_keys() -> None:
    """Everybody asks about the same conversation: none gets more than the bound."""
    loads = dict.fromkeys(NAMES, 0)
    for _ in range(500):
        rank = choose("the same", loads, 8)[0]
        taken = min(rank, key=loads.__getitem__)
        assert loads[taken] < bound(loads, 8)
        loads[taken] += 1
    assert max(loads.values()) <= math.ceil(SLACK * 500 / len(NAMES))
