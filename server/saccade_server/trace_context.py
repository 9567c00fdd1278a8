"""W3C Trace Context (https://www.w3.org/TR/trace-context/): which trace a request is part of.

Two headers carry it. What does not follow the recommendation is as if it had not come.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
FUTURE = "ff"
LONGEST_STATE = 512
SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span, as others name it: 32 and 16 lowercase hexadecimal digits, neither all zero.

    ``state`` is what other tracing systems want handed on.
    """

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    @property
    def traceparent(self) -> str:
        """The header's value."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"

    @property
    def headers(self) -> dict[str, str]:
        """What hands it on."""
        state = {TRACESTATE: self.state} if self.state else {}
        return {TRACEPARENT: self.traceparent, **state}


def parse(parents: Sequence[str], states: Sequence[str] = ()) -> TraceContext | None:
    """The context that the values of both headers say; None if there is none, or none that counts.

    Of a version that is not known, the fields of the first version are read, as is recommended.
    """
    found = PARENT.fullmatch(parents[0].strip(" \t")) if len(parents) == 1 else None
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == FUTURE or (version == "00" and more) or not trace.strip("0"):
        return None
    if not span.strip("0"):
        return None
    return TraceContext(trace, span, bool(int(flags, 16) & SAMPLED), _state(states))


def _state(values: Sequence[str]) -> str:
    members = [each.strip(" \t") for each in ",".join(values).split(",")]
    members = [each for each in members if each]
    names = [each.partition("=")[0] for each in members]
    state = ",".join(members)
    whole = all(MEMBER.fullmatch(each) for each in members) and len(set(names)) == len(names)
    return state if whole and len(members) <= 32 and len(state) <= LONGEST_STATE else ""
