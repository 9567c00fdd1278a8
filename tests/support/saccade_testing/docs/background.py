"""``saccade`` for a page under test: a server goes to the background; all else runs as it is.

A server that still runs is what its reader stops with Ctrl-C before the next one; if that has the
same options and environment, it goes on instead. Commands start in the process of ``warm.py``.
"""

import json
import os
import signal
import socket
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

STATE = Path(os.environ["PAGE_STATE"])
RUNNING = STATE / "server.json"
SECONDS = 180


@dataclass(frozen=True)
class Command:
    """A command that runs; ``answers`` are the lines of ``warm.py`` about it."""

    process: int
    answers: TextIO

    @classmethod
    def start(cls, arguments: list[str], output: int | None = None) -> "Command":
        """Start one; with ``output``, a file to write to, in the background."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.environ["PAGE_SOCKET"])
        asked = {
            "arguments": arguments,
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "foreground": output is None,
        }
        streams = [0, 1, 2] if output is None else [0, output, output]
        socket.send_fds(connection, [json.dumps(asked).encode()], streams)
        answers = connection.makefile()
        return cls(int(answers.readline()), answers)

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        return int(self.answers.readline())


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] != ["serve"] or "--help" in arguments:
        return Command.start(arguments).wait()
    settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith("SACCADE_")}
    wanted = {"arguments": arguments, "settings": settings, "folder": os.getcwd()}
    if RUNNING.exists():
        running = json.loads(RUNNING.read_text())
        if alive(running["pid"]) and {name: running[name] for name in wanted} == wanted:
            print(Path(running["log"]).read_text(), end="")
            return 0
        stop(running["pid"])
    return start(wanted)


def start(wanted: dict[str, Any]) -> int:
    """Start a server; returns 0 when it is ready, or what it ended with."""
    log = STATE / f"server-{time.time_ns()}.log"
    # Tests listen on the loopback alone.
    arguments = ["127.0.0.1" if word == "0.0.0.0" else word for word in wanted["arguments"]]
    with log.open("w") as out:
        server = Command.start(arguments, out.fileno())
    RUNNING.write_text(json.dumps({**wanted, "pid": server.process, "log": str(log)}))
    end = time.monotonic() + SECONDS
    while alive(server.process) and not ready() and time.monotonic() < end:
        time.sleep(0.05)
    print(log.read_text(), end="", flush=True)
    if alive(server.process):
        if ready():
            return 0
        os.killpg(server.process, signal.SIGKILL)
        print(f"not ready after {SECONDS} s", flush=True)
    RUNNING.unlink()
    return server.wait()


def ready() -> bool:
    url = f"http://127.0.0.1:{os.environ['PAGE_PORT']}/ready"
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def stop(process: int) -> None:
    """End a server of an earlier command and wait until its port is free."""
    if alive(process):
        os.kill(process, signal.SIGTERM)
    while alive(process):
        time.sleep(0.05)


def alive(process: int) -> bool:
    """False of a process that has ended, reaped or not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


if __name__ == "__main__":
    sys.exit(main())
