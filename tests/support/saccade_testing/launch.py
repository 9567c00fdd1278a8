"""``saccade serve`` in a process of its own, for tests that let it die."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

COMMAND = [sys.executable, "-c", "from saccade_server.cli import main; main()"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """A server that starts now; ``log`` is its standard error, ``output`` what it prints."""

    def __init__(self, log: Path, *options: str, port: int = 0, **variables: str) -> None:
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.output = log.with_suffix(".out")
        with log.open("w") as errors, self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--port", str(port), "--threads", "1", *options],
                stdout=output,
                stderr=errors,
                env=environment(**variables),
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[int]:
        """Linux lists a thread's children here; the engine is the only one."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(child) for child in listed.split()]

    def status(self, path: str) -> int:
        return httpx2.get(self.url + path, timeout=30).status_code

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return self.status("/ready") == 200
            except httpx2.TransportError:
                return False

        wait_for(ready, 250)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def environment(**variables: str) -> dict[str, str]:
    path = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, "PYTHONPATH": path, **variables}


def gone(pid: int) -> bool:
    """True of a process that has ended, reaped or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def wait_for(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)
