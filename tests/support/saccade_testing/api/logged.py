"""What a server's log says, as it would be written."""

import json
import logging
from typing import Any

import pytest

from saccade_server.logs.formats import JsonFormatter, TextFormatter

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
