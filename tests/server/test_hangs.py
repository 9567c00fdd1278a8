"""What the log says of an engine that hangs, and who acts on it."""

import asyncio
from types import SimpleNamespace

import pytest

from saccade_server import hangs as module
from saccade_server.api.settings import ApiSettings
from saccade_server.engine.watchdog import Lag
from saccade_server.hangs import hangs

SETTINGS = ApiSettings("m", silence_timeout=10, step_timeout=100)


def watch(
    lags: list[Lag], monkeypatch: pytest.MonkeyPatch, *, report_only: bool
) -> tuple[bool, int]:
    """What the watch returns for an engine that dies after ``lags``, and how many it looked at."""
    engine = SimpleNamespace(alive=True, lag=lags[0])
    seen = 1

    async def next_tick(seconds: float) -> None:
        nonlocal seen
        engine.alive = seen < len(lags)
        engine.lag = lags[min(seen, len(lags) - 1)]
        seen += 1

    monkeypatch.setattr(module, "sleep", next_tick)  # other threads sleep, too
    answer = asyncio.run(hangs(engine, SETTINGS, report_only=report_only))  # type: ignore[arg-type]
    return answer, seen


def test_each_turn_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lags = [Lag(), Lag(10, 90), Lag(15, 95), Lag(20, 99), Lag(30, 110), Lag(), Lag(), Lag(0, 300)]
    assert watch(lags, monkeypatch, report_only=True) == (False, len(lags) + 1)
    assert [record.message for record in caplog.records] == [
        "the engine is late: no sign of life for 10 s; /ready says no",
        "the engine hangs: no sign of life for 20 s; /live says no",
        "the engine goes on",
        "the engine hangs: work and no end of a step for 300 s; /live says no",
    ]


def test_the_first_hang_ends_the_watch_of_a_server_that_exits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lags = [Lag(), Lag(19, 199), Lag(0, 200), Lag()]
    assert watch(lags, monkeypatch, report_only=False) == (True, 3)
