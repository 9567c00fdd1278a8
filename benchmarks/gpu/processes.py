"""The parent's side of a worker: started, given parts, and ended with all that it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu.digests import BENCHMARKS, ROOT

POLL = 0.1
TAIL = 800
"""Characters of what a process said last, where it ended by itself."""

State = dict[str, Any]


@dataclass
class Outcome:
    """How a part ended. ``kind``: done, failed, died (the process), cut off (by its time)."""

    kind: str
    state: State
    reason: str = ""


@dataclass(eq=False)
class Process:
    """One worker. ``watch`` is called with each new state of the part that runs."""

    command: list[str]
    variables: dict[str, str]
    watch: Callable[[State], None] = lambda state: None
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="saccade-bench-")))

    def __post_init__(self) -> None:
        self._log = self.folder / "stderr"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.variables,
                cwd=ROOT,
                start_new_session=True,  # so that it ends with its children
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, job: State, known: State, end: float) -> Outcome:
        """A part; ``end`` is when it is ended, in seconds of time.time()."""
        state, others = self.folder / "state.json", self.folder / "known.json"
        state.unlink(missing_ok=True)
        others.write_text(json.dumps(known))
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            job = {**job, "state": str(state), "known": str(others)}
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        seen, found = 0, dict(job["have"])
        while True:
            alive = self.alive  # before the state is read: it may be its last
            if state.exists() and (now := state.stat().st_mtime_ns) != seen:
                seen, found = now, json.loads(state.read_text())
                self.watch(found)
            ended = found.pop("ended", None)
            if ended in ("done", "failed"):
                return Outcome(ended, found, found.pop("reason", ""))
            if not alive:
                self.kill()
                return Outcome("died", found, found.pop("reason", "") or self._last_words())
            if time.time() > end:
                return Outcome("cut off", found, f"its time was over: {self._stacks()}")
            time.sleep(POLL)

    def _stacks(self) -> str:
        """Where the process was; then it is no more."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGABRT)  # faulthandler writes stacks on it
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self.kill()
        return self._log.read_text(errors="replace").strip()[-2 * TAIL :]

    def _last_words(self) -> str:
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = self._log.read_text(errors="replace").strip()[-TAIL:]
        return f"the process ended with {name}: {said}" if said else f"it ended with {name}"

    def kill(self) -> None:
        """End it and all processes of its group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()


def own_command(role: str) -> list[str]:
    """The measuring script again, in another role."""
    return [sys.executable, str(BENCHMARKS / "gpu_bench.py"), "--role", role]
