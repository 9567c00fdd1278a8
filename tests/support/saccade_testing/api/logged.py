"""What a server's log says, as it would be written."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import pytest

from saccade_server.logs.formats import JsonFormatter, LogFormat, TextFormatter
from saccade_server.logs.setup import OURS, LogSettings, gather, set_up

ACCESS = "saccade.access"
TEXT, JSON = TextFormatter("api"), JsonFormatter("api")


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The records of requests' lines."""
    return [record for record in caplog.records if record.name == ACCESS]


def access_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Requests' lines of text, from the message on."""
    return [TEXT.format(record).partition(ACCESS + " ")[2] for record in records(caplog)]


def access_entries(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Requests' lines as the JSON that they would be."""
    return [json.loads(JSON.format(record)) for record in records(caplog)]


@contextmanager
def served_log(form: LogFormat, level: str = "DEBUG") -> Iterator[io.StringIO]:
    """All that a server's process would write to standard error, from its lowest level on."""
    root, written = logging.getLogger(), io.StringIO()
    loggers = [root, *map(logging.getLogger, (*OURS, "asyncio"))]
    levels, handlers = [each.level for each in loggers], root.handlers[:]
    root.handlers.clear()
    try:
        with redirect_stderr(written):
            set_up(LogSettings(level, form), surprises=False)
            gather()
        logging.captureWarnings(False)
        yield written
    finally:
        root.handlers[:] = handlers
        for each, before in zip(loggers, levels, strict=True):
            each.setLevel(before)
