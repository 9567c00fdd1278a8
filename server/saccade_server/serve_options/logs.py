"""What the server writes about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from saccade_server.logs.formats import LogFormat
from saccade_server.options import LogLevel
from saccade_server.serve_options.group import OptionGroup


@dataclass(frozen=True)
class LogOptions(OptionGroup):
    """The log."""

    log_level: LogLevel = "info"
    log_format: Annotated[
        LogFormat,
        typer.Option(
            help="How the log is written: as text, or one JSON object a line.",
            envvar="SACCADE_LOG_FORMAT",
        ),
    ] = LogFormat.TEXT
    access_log: Annotated[
        bool, typer.Option(help="Log a line per request.", envvar="SACCADE_ACCESS_LOG")
    ] = True

    def settings(self) -> dict[str, Any]:
        """Whether requests have lines."""
        return {"access_log": self.access_log}
