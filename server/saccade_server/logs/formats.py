"""A record as one line of text, or as one JSON object."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from saccade_server.logs.context import surroundings
from saccade_server.logs.lines import LONGEST_MESSAGE, bounded, one_line, pair, plain
from saccade_server.logs.tracebacks import Described, describe

WITH_WORDS: Mapping[str, Any] = {"words": True}
"""The ``extra`` of a record whose exception can say nothing that a client sent."""


class LogFormat(StrEnum):
    """How records are written."""

    TEXT = "text"
    JSON = "json"


class SafeFormatter(logging.Formatter):
    """What both formats share. A record that cannot be put into words is still a line."""

    def __init__(self, process: str, words: bool = False) -> None:
        """
        Args:
            process: which of a server's processes this is.
            words: exceptions may be quoted: nothing that clients send in clear is at hand.
        """
        super().__init__()
        self.process = process
        self.words = words

    def format(self, record: logging.LogRecord) -> str:
        """The record, without a line break at its end."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        return self.line(record, _message(record), fields, self._described(record))

    def line(
        self,
        record: logging.LogRecord,
        message: str,
        fields: dict[str, Any],
        error: Described | None,
    ) -> str:
        """What subclasses make of a record."""
        raise NotImplementedError

    def _described(self, record: logging.LogRecord) -> Described | None:
        error = record.exc_info[1] if record.exc_info else None
        words = self.words or getattr(record, "words", False)
        return None if error is None else describe(error, words)


class TextFormatter(SafeFormatter):
    """Time, level, logger, message, fields; where an exception comes from on lines that stand in.

    No line but a record's first begins at the margin, so nothing that is logged can look like one.
    """

    def line(
        self,
        record: logging.LogRecord,
        message: str,
        fields: dict[str, Any],
        error: Described | None,
    ) -> str:
        """See the class."""
        around = surroundings()
        trace = {"trace_id": around["trace_id"]} if "trace_id" in around else {}
        pairs = [pair(name, value) for name, value in (trace | fields).items()]
        head = f"{self.formatTime(record)} {record.levelname} {one_line(record.name, 128)}"
        first = " ".join([head, one_line(message), *pairs])
        return "\n    ".join([first, *(() if error is None else error.lines)])


class JsonFormatter(SafeFormatter):
    """An object of one line and nothing but ASCII; fields are members beside ``message``."""

    def line(
        self,
        record: logging.LogRecord,
        message: str,
        fields: dict[str, Any],
        error: Described | None,
    ) -> str:
        """See the class."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": bounded(record.name, 128),
            "process": self.process,
            "pid": record.process,
            "message": bounded(message, LONGEST_MESSAGE),
            **surroundings(),
        }
        entry |= {name: plain(value) for name, value in fields.items() if name not in OWN}
        if error is not None:
            said = {} if error.words is None else {"message": error.words}
            entry["exception"] = {"type": error.kind, **said, "stack": list(error.lines)}
        return json.dumps(entry)


OWN = frozenset({"time", "level", "logger", "process", "pid", "message", "exception"})
"""Members of every object, which no field replaces."""


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().rstrip("\n")
    except Exception:
        return f"{record.msg} (its argument does not fit)"
