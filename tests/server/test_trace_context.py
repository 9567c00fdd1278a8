"""The headers of W3C Trace Context: what counts, and what is as if it had not come."""

import pytest

from saccade_server.trace_context import TraceContext, parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_a_context_goes_there_and_back() -> None:
    found = parse([GOOD], ["rojo=00f067aa0ba902b7", " congo=t61rcWkgMzE , "])
    assert found == TraceContext(TRACE, SPAN, True, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")
    assert found.headers == {"traceparent": GOOD, "tracestate": found.state}
    assert parse([found.traceparent], [found.state]) == found


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("03", True), ("02", False), ("ff", True)]
)
def test_whether_it_is_sampled(flags: str, sampled: bool) -> None:
    found = parse([f"00-{TRACE}-{SPAN}-{flags}"])
    assert found is not None
    assert found.sampled is sampled


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        [GOOD, GOOD],
        [GOOD.upper()],
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"{GOOD}-more"],
        [f"{GOOD}\n"],
        [f"0-{TRACE}-{SPAN}-01"],
        [f"00-{TRACE}-{SPAN}-1"],
        [f"01-{TRACE}-{SPAN}-01x"],
        [f"00-{TRACE[:-1]}g-{SPAN}-01"],
        [f"00-{'٣' * 32}-{SPAN}-01"],
    ],
)
def test_what_does_not_count(values: list[str]) -> None:
    assert parse(values) is None


def test_a_later_version_is_read_as_the_first() -> None:
    assert parse([f"cc-{TRACE}-{SPAN}-01-what-the-future-brings"]) == parse([GOOD])


@pytest.mark.parametrize(
    "states",
    [["a=1,a=2"], ["=1"], ["a"], ["a=b\nc"], ["a=é"], [",".join(f"k{i}=1" for i in range(33))],
     ["a=" + "x" * 300], ["k" * 600]],
)  # fmt: skip
def test_a_state_that_does_not_count_leaves_the_context(states: list[str]) -> None:
    found = parse([GOOD], states)
    assert found is not None
    assert found.state == ""
