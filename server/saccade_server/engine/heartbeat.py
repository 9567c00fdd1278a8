"""Signs of life: what an engine's process writes into a pipe, whatever its loop is doing.

A thread of its own sends them, for a loop in a step cannot answer. A stopped process sends none.
They carry counts and no times, so whoever reads them measures with its own clock alone.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from typing import NamedTuple

BEAT_SECONDS = 0.5
ORPHANED = 1
"""Exit code of an engine whose parent has gone."""

_BEAT = struct.Struct("<Q?")
_READ_BYTES = 65536


class Beat(NamedTuple):
    """``steps`` so far, and whether there is ``work`` now: commands or a batch."""

    steps: int
    work: bool


class Progress:
    """Where an engine's loop is. Its thread writes, any thread may read."""

    def __init__(self) -> None:
        self.beat = Beat(0, False)

    def note(self, steps: int, work: bool) -> None:
        """Say how many steps there were, and whether there is work."""
        self.beat = Beat(steps, work)


class Heart:
    """Writes the loop's progress into a pipe; ends the process if nobody is left to read it.

    That a parent has gone is thus seen on every system, and while the loop is busy or still loads.
    """

    def __init__(self, pipe: int, progress: Progress) -> None:
        os.set_blocking(pipe, False)
        os.set_inheritable(pipe, False)
        self._pipe = pipe
        self._progress = progress
        threading.Thread(target=self._run, name="saccade-heart", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                os.write(self._pipe, _BEAT.pack(*self._progress.beat))
            except BlockingIOError:
                pass  # the reader sleeps; it has enough to read
            except BrokenPipeError:
                os._exit(ORPHANED)
            time.sleep(BEAT_SECONDS)


class Pulse:
    """The reading end of a pipe of beats, made for one engine process."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)

    def hand_over(self) -> None:
        """Close this process's copy of the writing end, once the engine's process has its own.

        Then the pipe breaks when the engine's process dies.
        """
        writer, self.writer = self.writer, -1
        if writer >= 0:
            os.close(writer)

    def read(self) -> Beat | None:
        """The last beat since the call before; None if there was none."""
        try:
            data = os.read(self._reader, _READ_BYTES)
        except BlockingIOError:
            return None
        whole = len(data) // _BEAT.size * _BEAT.size  # a pipe takes a beat whole
        return Beat(*_BEAT.unpack(data[whole - _BEAT.size : whole])) if whole else None

    def close(self) -> None:
        """Close what is open of it."""
        self.hand_over()
        reader, self._reader = self._reader, -1
        if reader >= 0:
            os.close(reader)
