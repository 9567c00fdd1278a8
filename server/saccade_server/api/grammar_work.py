"""Grammars that requests ask for: made and checked in threads of their own, and remembered.

A hostile one takes a bounded while, and there are few threads: callers with different keys take
turns, and whatever else a request needs does not wait behind another's grammar.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock

from saccade_server.api.access.keys import caller
from saccade_server.api.errors import BadRequest, bounded
from saccade_server.api.fair_threads import FairThreads
from saccade_server.api.metrics.tally import RequestTally
from saccade_server.grammars.checking import together
from saccade_server.grammars.errors import GrammarError
from saccade_server.grammars.grammar import Grammar, GrammarKind

MOST_REMEMBERED = 16 * 1024 * 1024
"""Bytes of sources, about, of the last grammars; refusals are remembered, too."""
LEAST = 1024
"""Bytes that each counts at least."""


@dataclass(frozen=True)
class Asked:
    """A grammar that is asked for at ``param``, a JSON path; people know it as ``field``.

    ``make`` gives its source, which takes a while. It raises BadRequest, or GrammarError with a
    path that begins at ``param``; ``key`` is all that it depends on.
    """

    kind: GrammarKind
    field: str
    param: str
    key: str
    make: Callable[[], str]
    longest: int | None = None  # bytes that an answer has at most, if that is known


_Found = Grammar | BadRequest


class GrammarWork:
    """Makes grammars of what requests ask for."""

    def __init__(self, threads: int, tally: RequestTally) -> None:
        self._threads = FairThreads(threads, "saccade-grammar")
        self._tally = tally
        self._lock = Lock()
        self._known: OrderedDict[bytes, _Found] = OrderedDict()
        self._bytes = 0

    async def checked(self, asked: Asked) -> Grammar:
        """The grammar, which will compile in the engine as it did here.

        Raises:
            BadRequest: it is none, cannot be followed, or is too large; with the path to where.
        """
        key = sha256(f"{asked.kind} {asked.param} {asked.key}".encode()).digest()
        found = self._find(key) or await self._work(asked, key)
        if isinstance(found, BadRequest):
            self._tally.refused_grammar(asked.kind, found.code)
            raise BadRequest(found.message, code=found.code, param=found.param)
        return found

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown()

    async def _work(self, asked: Asked, key: bytes) -> _Found:
        future = self._threads.submit(caller.get().name, lambda: self._make(asked, key))
        found, seconds = await asyncio.wrap_future(future)
        self._tally.checked_grammar(seconds)
        return found

    def _make(self, asked: Asked, key: bytes) -> tuple[_Found, float]:
        """The grammar, and the seconds that it took."""
        began = time.monotonic()
        found = self._find(key)  # another request may have asked for the same meanwhile
        if found is None:
            found = _made(asked)
            self._remember(key, found)
        return found, time.monotonic() - began

    def _find(self, key: bytes) -> _Found | None:
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def _remember(self, key: bytes, found: _Found) -> None:
        with self._lock:
            replaced = self._known.pop(key, None)
            self._known[key] = found
            self._bytes += _size(found) - (_size(replaced) if replaced is not None else 0)
            while self._bytes > MOST_REMEMBERED:
                self._bytes -= _size(self._known.popitem(last=False)[1])


def _made(asked: Asked) -> _Found:
    try:
        with together():
            return Grammar(asked.kind, asked.make())
    except GrammarError as error:
        param = asked.param + written(error.path)
        return BadRequest(error.message, code=error.code, param=param)
    except BadRequest as error:
        return error


def written(path: tuple[str | int, ...]) -> str:
    """A path inside of a value, to be put behind the path of that value."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{bounded(step, 64)}" for step in path)
    return "".join(steps)


def _size(found: _Found) -> int:
    return max(LEAST, len(found.source) if isinstance(found, Grammar) else len(found.message))
