"""``saccade serve`` or ``cluster`` in a process of its own, for tests that let it die."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2

COMMAND = [sys.executable, "-c", "from saccade_server.cli import main; main()"]


REPLICA = "ray::ServeReplica"
ENGINE = "saccade_server.engine.process"
"""Parts of command lines: of an actor of Ray Serve, of an engine."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """A server that starts now; ``log`` is its standard error, ``output`` what it prints."""

    command = "serve"

    def __init__(self, log: Path, *options: str, port: int = 0, **variables: str) -> None:
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.output = log.with_suffix(".out")
        with log.open("w") as errors, self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*COMMAND, self.command, "--port", str(port), "--threads", "1", *options],
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

    def wait_until_ready(self, seconds: float = 250.0) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return self.status("/ready") == 200
            except httpx2.TransportError:
                return False

        wait_for(ready, seconds)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Clustered(Served):
    """Replicas in a Ray of their own, which ends with them."""

    command = "cluster"

    def replicas(self) -> list[int]:
        """The processes of replicas."""
        return named(descendants(self.pid), REPLICA)

    def engines(self) -> list[int]:
        """The processes of their engines."""
        return named(descendants(self.pid), ENGINE)

    def end(self) -> None:
        started = descendants(self.pid)
        with suppress(subprocess.TimeoutExpired):
            self.process.terminate()
            self.process.wait(60)
        for pid in [self.pid, *started]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def descendants(pid: int) -> list[int]:
    """Every process that this one, or one of these, has started."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found[1:]


def named(pids: list[int], part: str) -> list[int]:
    """Those whose command line has ``part`` in it."""
    found = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            if part in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


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
