"""A process that ends with the one that started it, whatever either of them is doing."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends; exit if it has ended already.

    Linux only, and there at once, in the middle of whatever runs: SIGKILL, because nothing here
    needs to be put in order and a signal that Python handles waits for Python. Elsewhere see
    :class:`~saccade_server.engine.heartbeat.Heart`. The kernel watches the *thread* that started
    this process: an engine belongs to an event loop whose thread lives as long as it.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the kernel was told
        os._exit(1)
