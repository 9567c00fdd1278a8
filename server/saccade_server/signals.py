"""What the signals to a server ask for: its end, the more of them the sooner, or its files again.

A hangup says one of two things. Where the terminal that the server was started from is gone, it is
the terminal's last word and stops the server, as it stops any program. Otherwise somebody sent it,
and it asks for the files to be read again (:mod:`~saccade_server.api.reloading`). A server that was
started to survive its terminal (nohup) ignores it.
"""

from __future__ import annotations

import asyncio
import os
import signal

STOPPING = (signal.SIGTERM, signal.SIGINT)
TERMINAL = "/dev/tty"
"""The controlling terminal of whoever opens it."""


def heeded() -> list[signal.Signals]:
    """Those that this process answers: a hangup only if it was not started to survive one."""
    ignores = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [*STOPPING, *([] if ignores else [signal.SIGHUP])]


class Terminal:
    """The terminal that this process has when this is made, if it has one."""

    def __init__(self) -> None:
        self._was_there = _is_there()

    @property
    def is_gone(self) -> bool:
        """There was one, and it was closed. Daemons and containers never had any."""
        return self._was_there and not _is_there()


class Signals:
    """Counted from now on, on this event loop.

    The first that stops asks to finish what has begun, the second to end it with an error, the
    third to leave without another word. ``reloads`` counts those that ask for files again.
    """

    def __init__(self) -> None:
        self.count = 0
        self.reloads = 0
        self.stop = asyncio.Event()
        self._terminal = Terminal()
        loop = asyncio.get_running_loop()
        for number in heeded():
            loop.add_signal_handler(number, self._note, number)

    @property
    def at_once(self) -> bool:
        """Nothing is waited for any more."""
        return self.count > 1

    def _note(self, number: signal.Signals) -> None:
        if number is signal.SIGHUP and not self._terminal.is_gone:
            self.reloads += 1
            return
        self.count += 1
        self.stop.set()


def _is_there() -> bool:
    try:
        os.close(os.open(TERMINAL, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
