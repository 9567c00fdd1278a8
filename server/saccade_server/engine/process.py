"""Entry point of the engine process: bound to its parent before what takes time is imported.

Its arguments are the socket's endpoint, the configuration as JSON, the parent's process id, the
pipe for signs of life, and how the log is written, as JSON.
"""

from __future__ import annotations

import signal
import sys

from saccade_server.engine.heartbeat import Heart, Progress
from saccade_server.engine.orphan import die_with
from saccade_server.logs.setup import LogSettings, gather, set_up

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""A signal to the whole process group must not end what requests in flight wait for: the API
process decides when to stop, and if it is gone this one goes with it."""


def main(endpoint: str, config: str, parent: int, pipe: int, logs: str) -> int:
    """Load, announce, serve. Returns the process's exit code."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    die_with(parent)
    progress = Progress()
    Heart(pipe, progress)
    # There are tokens here and no texts.
    set_up(LogSettings.decode(logs), "engine", words=True)
    from saccade_server.engine.link import run  # torch and transformers: seconds

    gather()
    return run(endpoint, config, progress)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))
