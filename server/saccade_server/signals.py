"""What the signals to a server ask for, the more of them the sooner."""

from __future__ import annotations

import asyncio
import signal

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def heeded() -> list[signal.Signals]:
    """Those that stop this process: a hangup only if it was not started to survive one (nohup)."""
    ignores = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOPPING if not (number is signal.SIGHUP and ignores)]


class Signals:
    """Counted from now on, on this event loop.

    The first asks to finish what has begun, the second to end it with an error, the third to leave
    without another word.
    """

    def __init__(self) -> None:
        self.count = 0
        self.stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in heeded():
            loop.add_signal_handler(number, self._note)

    @property
    def at_once(self) -> bool:
        """Nothing is waited for any more."""
        return self.count > 1

    def _note(self) -> None:
        self.count += 1
        self.stop.set()
