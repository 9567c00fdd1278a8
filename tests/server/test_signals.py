"""Signals to a server: which stop it, and which hangups only have its files read again."""

import asyncio
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade_server.signals import Signals, heeded
from saccade_testing import launch

COUNTS = """
import asyncio, os, signal
from saccade_server.signals import Signals

async def main():
    signals = Signals()
    print("ready", flush=True)
    while not signals.count:
        await asyncio.sleep(0.01)
        print(signals.reloads, signals.count, flush=True)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (*heeded(), signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_hangup_is_not_heeded_under_nohup() -> None:
    assert heeded() == [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert heeded() == [signal.SIGTERM, signal.SIGINT]


def test_a_hangup_that_somebody_sends_asks_for_the_files_and_the_rest_for_the_end() -> None:
    async def work() -> tuple[int, int, bool]:
        signals = Signals()
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.01)
        return signals.reloads, signals.count, signals.stop.is_set()

    assert asyncio.run(work()) == (2, 1, True)


def in_a_terminal(command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """A process whose controlling terminal closes with the descriptor that comes back."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        env=launch.environment(),
    )
    os.close(theirs)
    return process, ours


def test_the_terminals_own_hangup_stops_and_one_sent_before_does_not() -> None:
    process, terminal = in_a_terminal([sys.executable, "-c", COUNTS])
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        while (line := process.stdout.readline()) == b"0 0\n":
            pass
        assert line == b"1 0\n"
        os.close(terminal)
        assert process.wait(10) == 0
        assert process.stdout.read().splitlines()[-1] == b"1 1"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.timeout(60)
def test_before_it_serves_a_closed_terminal_ends_a_server_and_a_sent_hangup_does_not() -> None:
    process, terminal = in_a_terminal([*launch.COMMAND, "serve", "--port", str(launch.free_port())])
    try:
        while not answers_hangups(process.pid):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert process.poll() is None
        os.close(terminal)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def answers_hangups(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(mask >> (signal.SIGHUP - 1) & 1)
