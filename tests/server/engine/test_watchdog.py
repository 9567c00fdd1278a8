"""When an engine counts as late or hung; no clock but the test's own."""

import os
import time
from collections.abc import Iterable

import pytest

from saccade_server.engine.heartbeat import BEAT_SECONDS, Beat, Heart, Progress, Pulse
from saccade_server.engine.watchdog import HUNG, LONGEST_TICK, Lag, Watchdog


def watched(beats: Iterable[Beat | None], seconds: float = BEAT_SECONDS) -> Lag:
    watchdog = Watchdog()
    for index, beat in enumerate(beats):
        watchdog.tick(1000.0 + index * seconds, beat)
    return watchdog.lag


def test_an_idle_engine_is_healthy_for_ever() -> None:
    assert watched([Beat(7, False)] * 1000) == Lag(0.0, 0.0)


def test_a_busy_engine_that_makes_steps_is_healthy() -> None:
    assert watched(Beat(step, True) for step in range(1000)) == Lag(0.0, 0.0)


def test_a_step_that_does_not_end_and_work_without_a_step_both_stall() -> None:
    lag = watched([Beat(7, False), *[Beat(7, True)] * 121])
    assert lag == Lag(0.0, 60.0)
    assert lag.overdue(silence=1.0, step=60.0) == 1.0
    assert lag.overdue(silence=1.0, step=30.0) == HUNG


def test_a_step_that_ends_or_is_given_up_ends_the_stall() -> None:
    assert watched([*[Beat(7, True)] * 100, Beat(8, True)]).stalled == 0
    assert watched([*[Beat(7, True)] * 100, Beat(7, False)]).stalled == 0


def test_short_requests_are_no_stall_although_the_same_count_is_seen_twice() -> None:
    assert watched([Beat(7, True), Beat(7, False)] * 100).stalled == 0


def test_a_stopped_process_is_silent_and_its_step_goes_on_without_end() -> None:
    assert watched([Beat(7, False), *[None] * 40]) == Lag(20.0, 0.0)
    assert watched([Beat(7, True), *[None] * 40]) == Lag(20.0, 20.0)
    assert watched([Beat(7, False), *[None] * 40, Beat(7, False)]) == Lag(0.0, 0.0)
    assert Lag(20.0, 0.0).overdue(silence=20.0, step=1.0) == 1.0


@pytest.mark.parametrize("work", [False, True])
def test_time_in_which_the_watcher_did_not_run_does_not_count(work: bool) -> None:
    """A machine that slept for an hour, or both processes stopped: nobody hung."""
    watchdog = Watchdog()
    watchdog.tick(0.0, Beat(7, work))
    watchdog.tick(3600.0, None)  # the watcher woke first
    assert watchdog.lag.overdue(silence=20.0, step=180.0) <= LONGEST_TICK / 20.0
    watchdog.tick(3600.5, Beat(7, work))
    assert watchdog.lag.silent == 0.0
    assert watchdog.lag.stalled <= LONGEST_TICK + BEAT_SECONDS


def test_beats_cross_a_pipe_and_the_last_one_counts() -> None:
    pulse, progress = Pulse(), Progress()  # never closed: a heart ends its process then
    writer = os.dup(pulse.writer)
    pulse.hand_over()
    assert pulse.read() is None
    progress.note(2**40, True)
    Heart(writer, progress)
    beat = None
    for _ in range(600):
        beat = pulse.read()
        if beat is not None:
            break
        time.sleep(0.1)
    assert beat == Beat(2**40, True)
    assert not os.get_inheritable(writer)
    progress.note(5, False)
    while beat != Beat(5, False):
        beat = pulse.read() or beat
