"""Whether a source can be a grammar: found by trying it out in a process of its own."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Event, Lock, Timer
from typing import Final

from saccade_server.grammars.limits import (
    CHECK_CPU_SECONDS,
    CHECK_SECONDS,
    LONGEST_SOURCE,
    TOGETHER_CPU_SECONDS,
)
from saccade_server.grammars.telling import refusal
from saccade_server.grammars.worker import EBNF, SOURCE

_ENVIRONMENT: Final = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
"""Variables that the process gets; those with secrets are none of its business."""

TOO_LONG: Final = "the grammar takes too long to compile"
TOO_MUCH: Final = "the grammar takes too much memory to compile"

HALF: Final = "the grammar has half of a surrogate pair"

PATIENCE: Final = 3 * CHECK_SECONDS
"""After which a process that neither answers nor ends is killed: somebody has stopped it."""

_LEFT: Final[ContextVar[float | None]] = ContextVar("cpu_seconds_left", default=None)
"""CPU time that checks have left, where several share some."""

_KNOWN_SOURCES: Final = 256
_KNOWN_CHARACTERS: Final = 8 * 1024 * 1024


class _Worker:
    """The process, started when it is first needed and again when a text has ended it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._known: OrderedDict[str, str | None] = OrderedDict()

    def wrong(self, source: str) -> str | None:
        """What is wrong with a source; sources asked for lately are not tried again."""
        with self._lock:
            if source in self._known:
                self._known.move_to_end(source)
            else:
                self._known[source] = self._asked(SOURCE, source)[1]
                while (
                    len(self._known) > _KNOWN_SOURCES
                    or sum(map(len, self._known)) > _KNOWN_CHARACTERS
                ):
                    self._known.popitem(last=False)
            return self._known[source]

    def lark(self, ebnf: str) -> tuple[str | None, str | None]:
        """A grammar in EBNF in Lark's syntax, and what is wrong with it."""
        with self._lock:
            return self._asked(EBNF, ebnf)

    def _asked(self, task: str, text: str) -> tuple[str | None, str | None]:
        for _ in range(2):  # a process that somebody else ended is started once more
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            with _killed_after(PATIENCE, process) as gave_up, suppress(BrokenPipeError):
                process.stdin.write(json.dumps((task, text)) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if answer.endswith("\n"):
                    made, wrong, seconds = json.loads(answer)
                    _spend(seconds)
                    return made, wrong
            ended = self._ended()
            _spend(CHECK_CPU_SECONDS)
            if ended in (-signal.SIGPROF, -signal.SIGALRM) or gave_up.is_set():
                return None, TOO_LONG
            if ended in (-signal.SIGABRT, -signal.SIGSEGV):
                return None, TOO_MUCH
        raise RuntimeError(f"the process that checks grammars ends with {ended}")

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._ended()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "saccade_server.grammars.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what Rust says of a panic names no request
                text=True,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
                | {"OPENBLAS_NUM_THREADS": "1"},
            )
        return self._process

    def _ended(self) -> int | None:
        """The exit code of the process, which has ended or ends now."""
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(BrokenPipeError):
            process.communicate()
        return process.returncode

    def close(self) -> None:
        with self._lock:
            self._ended()


_WORKER: Final = _Worker()
atexit.register(_WORKER.close)


@contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[str]) -> Iterator[Event]:
    """Kill a process if what is inside takes so long; gives an event that says so."""
    gave_up = Event()

    def give_up() -> None:
        gave_up.set()
        process.kill()

    timer = Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield gave_up
    finally:
        timer.cancel()


@contextmanager
def together(seconds: float = TOGETHER_CPU_SECONDS) -> Iterator[None]:
    """The checks inside take so much CPU time at most; what comes behind it takes too long."""
    before = _LEFT.set(seconds)
    try:
        yield
    finally:
        _LEFT.reset(before)


def _spend(seconds: float) -> None:
    left = _LEFT.get()
    if left is not None:
        _LEFT.set(left - seconds)


def _exhausted() -> bool:
    left = _LEFT.get()
    return left is not None and left <= 0


def check(source: str) -> None:
    """Raise GrammarError for a source that is no grammar, or one beyond the limits.

    Takes about a second at most, in a thread of the caller's.
    """
    wrong = wrong_with(source)
    if wrong is not None:
        raise refusal(wrong)


def converted(ebnf: str) -> str:
    """A grammar in EBNF in Lark's syntax. Raises GrammarError."""
    lark, wrong = (None, HALF) if _halved(ebnf) else _WORKER.lark(ebnf)
    if lark is None:
        raise refusal(wrong or TOO_MUCH)
    return lark


def wrong_with(source: str) -> str | None:
    """What is wrong with a source, in the words that it was found in; None: nothing."""
    if len(source) > LONGEST_SOURCE:
        return f"the grammar is longer than {LONGEST_SOURCE} characters"
    if _halved(source):
        return HALF
    return TOO_LONG if _exhausted() else _WORKER.wrong(source)


def _halved(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
