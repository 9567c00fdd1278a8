"""A real server on a checkpoint in the shape of LLaVA-1.5-7B: how long it takes to start, phase by
phase, and what it gives over HTTP.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from gpu import checkpoint
from gpu.asking import tokens_per_second
from gpu.session import Figures, Session
from gpu.shapes import LLAVA, TINY_LLAVA

SERVE = "from saccade_server.cli import main; main()"
PHASES = (
    ("imports", "loading the weights of"),
    ("weights", "preparing to serve"),
    ("capture", "key-value cache of"),
    ("self-test", "self-test:"),
)
"""Phases of a start, each until the engine's log says this."""

LOADS = ((1, None), (8, None), (32, None), (8, "pai"), (32, "pai"))
"""Requests at once, and the method on each of them."""

LOG_TAIL = 1500


@dataclass
class Server:
    """``saccade serve`` in a process; ``seen`` has the seconds at which each phase was over."""

    folder: Path
    options: tuple[str, ...]
    began: float = field(default_factory=time.perf_counter)
    seen: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        command = [sys.executable, "-c", SERVE, "serve", str(self.folder)]
        command += ["--port", str(self.port), *self.options]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "SACCADE_API_KEY": ""},
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            for phase, sign in PHASES:
                if sign in line:
                    self.seen[phase] = time.perf_counter() - self.began

    def wait(self, seconds: float) -> float:
        """Seconds from the start to the first yes of /ready.

        Raises:
            RuntimeError: it ended, or did not say yes in time; with the end of its log.
        """
        while (passed := time.perf_counter() - self.began) < seconds:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self._tail()}")
            if self._is_ready():
                return time.perf_counter() - self.began
            time.sleep(0.05)
        raise RuntimeError(f"not ready after {passed:.0f} s: {self._tail()}")

    def _is_ready(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def _tail(self) -> str:
        time.sleep(0.2)  # what it said last is read by the other thread
        return "".join(self.lines)[-LOG_TAIL:]

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        self.process.kill()
        self.process.wait()


def run_start(session: Session, found: Figures) -> None:
    """Write the checkpoint, start on it, ask it."""
    wanted = ["start", *(_name(*load) for load in LOADS)]
    if all(name in found for name in wanted):
        return
    place = Path(tempfile.mkdtemp(prefix="saccade-checkpoint-"))
    try:
        began = time.perf_counter()
        shape = TINY_LLAVA if session.dry else LLAVA
        tower = checkpoint.TINY_TOWER if session.dry else checkpoint.TOWER
        size = checkpoint.write(place / shape.name, shape, tower)
        session.say(f"{size / 1e9:.1f} GB written in {time.perf_counter() - began:.1f} s")
        server = Server(place / shape.name, _options(session))
        try:
            _measure(session, found, server, size)
        finally:
            server.end()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _options(session: Session) -> tuple[str, ...]:
    if session.dry:
        return "--device", "cpu", "--threads", "1", "--log-level", "info"
    return "--device", "cuda", "--dtype", "bfloat16", "--log-level", "info"


def _measure(session: Session, found: Figures, server: Server, size: int) -> None:
    ready = server.wait(max(session.left, 5.0))
    if "start" not in found:
        session.measure(found, "start", 0, partial(_phases, server, ready, size))
        phases = ", ".join(f"{n} {s:.1f}" for n, s in found["start"]["phases"].items())
        session.line("seconds from start to /ready, 7B", f"{ready:.1f} ({phases})")
        session.say(f"ready after {ready:.1f} s: {phases}")
    for requests, method in LOADS:
        one = partial(_load, server.port, requests, method, session.dry)
        cell = session.measure(found, _name(requests, method), 8, one)
        if cell is not None:
            name = f"over HTTP, {_name(requests, method)}"
            session.line(name, f"{cell['tokens_per_second']:.0f} tokens a second")
            session.say(f"{name}: {cell['tokens_per_second']:.0f} tokens a second")


def _phases(server: Server, ready: float, size: int, cell: Figures) -> None:
    ends = {name: server.seen[name] for name, _ in PHASES if name in server.seen} | {"ready": ready}
    names = ["listening" if name == "ready" else name for name in ends]
    begins = [0.0, *list(ends.values())[:-1]]
    cell |= {
        "ready_s": ready,
        "phases": {
            name: end - begin for name, begin, end in zip(names, begins, ends.values(), strict=True)
        },
        "bytes": size,
        "reads": "files that were just written, from memory",
        "log": [line.strip()[:200] for line in server.lines if " INFO " in line][:40],
    }


def _load(port: int, requests: int, method: str | None, dry: bool, cell: Figures) -> None:
    count = 8 if dry else 64
    ask: Callable[[], Figures] = partial(tokens_per_second, port, requests, count, method)
    ask()  # warms up
    cell |= ask()


def _name(requests: int, method: str | None) -> str:
    return f"{requests} at once, {method or 'plain'}"
