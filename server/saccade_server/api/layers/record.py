"""What is known of each request: filled in by whoever learns it, read by those who look on.

:class:`~saccade_server.api.layers.observe.Observe` makes one for every HTTP request; layers, routes
and answers find it by the request's scope. *Observers* read it: the log line, metrics, spans.
Nothing in it is a prompt, an image or a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import Scope

from saccade_interventions.errors import Code
from saccade_server.engine.timing import Timing

_ENTRY = re.compile(r"(?:vllm_xargs\.)?interventions\[(\d{1,6})\]")

RECORD = "saccade.record"
"""Where a request's scope has its record."""


@dataclass(frozen=True, slots=True)
class SequenceRecord:
    """One sequence of an answer, once it has ended or nobody waits for it any more.

    ``finish_reason`` is "stop", "length", "abort" (its client left, it took too long, or another
    of the same request failed) or "error". ``timing`` is what the engine says of it, None if it
    said nothing: a sequence that nobody waits for is not asked. ``constrained`` tokens were drawn
    under a grammar, which left no other for ``forced`` of them. ``began`` is when it went to the
    engine, by ``time.monotonic``.
    """

    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    max_tokens: int
    timing: Timing | None
    constrained: int = 0
    forced: int = 0
    began: float = field(default=0.0, compare=False)


@dataclass(slots=True, eq=False)
class Record:
    """One HTTP request. Times are seconds of ``time.monotonic``; 0.0 and "": not known, or not so.

    ``method`` is HTTP's, ``path`` as it was sent, ``route`` the path's template, "" if there is no
    such route. ``left``: its client has; ``status`` is 499 if that was before its answer began.
    ``error`` is the code of an error object, also of one that came inside a stream. ``key`` is the
    name of the key, never the key.

    Of answers: ``began_work`` is when its sequences went to the engine, ``first_token`` when the
    first token of any came back. ``grammar`` is the kind of what they must be. ``interventions``
    are the methods in the order of the request, ``counters`` what the engine counted for each place
    in it (receipts' counters), ``lost`` those that should have run and did not, and ``blamed``
    those that an error is about; "" stands for a method that there is not.
    """

    id: str
    method: str = ""
    path: str = ""
    client: str = ""
    began: float = 0.0
    ended: float = 0.0
    route: str = ""
    status: int = 0
    error: str = ""
    bytes: int = 0
    left: bool = False
    key: str = ""
    stream: bool = False
    model: str = ""
    profile: str = ""
    interventions: tuple[str, ...] = ()
    grammar: str = ""
    images: int = 0
    n: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    began_work: float = 0.0
    first_token: float = 0.0
    sequences: tuple[SequenceRecord, ...] = ()
    counters: dict[int, dict[str, int]] = field(default_factory=dict)
    blamed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """From its head to the end of its answer."""
        return self.ended - self.began

    @property
    def timings(self) -> list[Timing]:
        """Those of its sequences that the engine told."""
        return [each.timing for each in self.sequences if each.timing is not None]

    @property
    def extra_passes(self) -> dict[int, int]:
        """See :class:`Timing`, over all sequences."""
        found: dict[int, int] = {}
        for timing in self.timings:
            for place, passes in timing.extra_passes.items():
                found[place] = found.get(place, 0) + passes
        return found

    def fail(self, code: str, param: str | None) -> None:
        """Note an error; ``param`` is where in the request it is."""
        self.error = code
        place = _ENTRY.match(param or "")
        if place is not None:
            self.blamed = self.interventions[int(place[1]) :][:1]
        elif code == Code.DIVERGED:
            self.blamed = self.interventions


class Observer(Protocol):
    """Looks at every request. It must be quick, and must not fail."""

    def begun(self, record: Record, headers: Headers) -> None:
        """The request's head has come; called in the task, and the context, that answers it."""
        ...

    def ended(self, record: Record) -> None:
        """The request has been answered, or given up; the record is complete."""
        ...


def record_of(scope: Scope) -> Record:
    """The record of a request; one that nobody reads if nobody observes it."""
    found: Record = scope.setdefault(RECORD, Record(""))
    return found


def summed(found: Iterable[dict[str, int]]) -> dict[str, int]:
    """Counters of several sequences together, by name."""
    total: dict[str, int] = {}
    for counters in found:
        for name, value in counters.items():
            total[name] = total.get(name, 0) + value
    return total
