"""One line of the log about each request: who asked for what, what came of it, how long it took.

Of what a client writes freely the path alone is in it, bounded and quoted: no query, no prompt, no
image, no key.
"""

from __future__ import annotations

import logging
import re
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers

from saccade_server.api.errors import bounded
from saccade_server.api.layers.record import Record
from saccade_server.engine.timing import Timing
from saccade_server.logs.context import fields, trace_context, trace_fields

access_log = logging.getLogger("saccade.access")

ADDRESS = re.compile(r"[0-9A-Za-z._:%-]{1,64}")


class AccessLine:
    """Writes it once the request has ended."""

    def begun(self, record: Record, headers: Headers) -> None:
        """Nothing is said yet."""

    def ended(self, record: Record) -> None:
        """Write the line; what is not known, or not so, is not in it."""
        if access_log.isEnabledFor(logging.INFO):
            asked = bounded(record.method, 32), shown_path(record), record.status
            access_log.info("%s %s %d", *asked, extra=fields(**line_of(record)))


def shown_path(record: Record) -> str:
    """The path as a log and a span have it: quoted and bounded.

    What is no path, such as a whole URL with a user and a password in it, is not shown.
    """
    return bounded(quote(record.path)) if record.path.startswith("/") else "-"


def shown_client(record: Record) -> str:
    """The client's address; "-" for what a proxy on this machine says instead of one."""
    return record.client if ADDRESS.fullmatch(record.client) else "-"


def line_of(record: Record) -> dict[str, Any]:
    """The fields of a request's line, times in seconds."""
    told: dict[str, Any] = {
        "client": shown_client(record),
        "bytes": record.bytes,
        "seconds": record.seconds,
        "request_id": record.id,
        **trace_fields(trace_context.get()),
        **_said(key_name=record.key, error=record.error, left=record.left),
    }
    return told | (_answer(record) if record.model else {})


def _answer(record: Record) -> dict[str, Any]:
    first = record.first_token - record.began if record.first_token else 0.0
    return {
        "model": record.model,
        **_said(profile=record.profile, interventions=list(record.interventions)),
        **_said(grammar=record.grammar),
        **_said(stream=record.stream, n=record.n if record.n > 1 else 0, images=record.images),
        "prompt_tokens": record.prompt_tokens,
        **_said(cached_tokens=record.cached_tokens),
        "completion_tokens": record.completion_tokens,
        **_said(first_token_seconds=first, **_longest(record.timings)),
        **_said(finish=list(dict.fromkeys(each.finish_reason for each in record.sequences))),
        **_said(lost=list(record.lost), extra_passes=sum(record.extra_passes.values())),
    }


def _longest(timings: list[Timing]) -> dict[str, float]:
    """Of several sequences, the longest that one was in each state."""
    return {
        "queue_seconds": max((each.queued for each in timings), default=0.0),
        "prompt_seconds": max((each.prompt or 0.0 for each in timings), default=0.0),
        "decode_seconds": max((each.decode or 0.0 for each in timings), default=0.0),
        "preemptions": sum(each.preemptions for each in timings),
    }


def _said(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}
