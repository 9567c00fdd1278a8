"""The page pool: sharing, eviction order, and never losing a page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade_server.engine.pages import PagePool


def keys(*names: str) -> list[bytes]:
    return [name.encode() for name in names]


def test_page_zero_is_never_handed_out() -> None:
    pool = PagePool(4)
    assert sorted(pool.allocate(3) or []) == [1, 2, 3]
    assert pool.allocate(1) is None
    assert pool.usage == 1.0


def test_a_pool_needs_a_page_besides_padding() -> None:
    with pytest.raises(ValueError, match="two pages"):
        PagePool(1)


def test_released_prefix_is_found_again() -> None:
    pool = PagePool(8)
    held = pool.allocate(2) or []
    for page, key in zip(held, keys("a", "ab"), strict=True):
        pool.publish(page, key)
    pool.release(held)
    assert pool.usage == 0
    assert pool.match(keys("a", "ab", "abc")) == held
    assert pool.match(keys("b")) == []


def test_shared_page_lives_until_the_last_holder_lets_go() -> None:
    pool = PagePool(3)
    held = pool.allocate(1) or []
    pool.publish(held[0], b"a")
    assert pool.match(keys("a")) == held
    pool.release(held)
    assert pool.allocate(2) is None
    pool.release(held)
    assert len(pool.allocate(2) or []) == 2


def test_the_end_of_a_prefix_is_evicted_before_its_start() -> None:
    pool = PagePool(4)
    held = pool.allocate(3) or []
    for page, key in zip(held, keys("a", "ab", "abc"), strict=True):
        pool.publish(page, key)
    pool.release(held)
    pool.allocate(1)
    assert pool.match(keys("a", "ab", "abc")) == held[:2]


def test_an_extra_is_only_needed_by_those_who_ask() -> None:
    pool = PagePool(4)
    (plain,) = pool.allocate(1) or []
    pool.publish(plain, b"a")
    assert pool.match(keys("a"), "scores") == []
    (scored,) = pool.allocate(1) or []
    pool.publish(scored, b"a", "scores")
    assert pool.match(keys("a"), "scores") == [scored]
    assert pool.match(keys("a")) == [scored]
    assert pool.match(keys("a"), "other scores") == []
    pool.release([plain, scored, scored, scored])
    assert pool.usage == 0
    assert len(pool.allocate(3) or []) == 3


def test_a_page_replaced_while_idle_is_free_at_once() -> None:
    pool = PagePool(3)
    (plain,) = pool.allocate(1) or []
    pool.publish(plain, b"a")
    pool.release([plain])
    (scored,) = pool.allocate(1) or []
    pool.publish(scored, b"a", "scores")
    assert pool.available == 1
    assert pool.match(keys("a")) == [scored]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), max_size=60))
def test_no_page_is_lost_or_held_twice(steps: list[tuple[int, int]]) -> None:
    """Random allocate, publish, match and release leave every page accounted for."""
    pool = PagePool(10)
    held: list[list[int]] = []
    for action, count in steps:
        if action == 0:
            pages = pool.allocate(count)
            if pages is not None:
                held.append(pages)
        elif action in (1, 4) and held:
            for index, page in enumerate(held[-1]):
                pool.publish(page, f"{count}-{index}".encode(), "x" if action == 4 else None)
        elif action == 2:
            held.append(pool.match(f"{count}-{i}".encode() for i in range(4)))
        elif held:
            pool.release(held.pop(0))
    used = {page for pages in held for page in pages}
    assert pool.available == 9 - len(used)
    for pages in held:
        pool.release(pages)
    assert pool.available == 9
