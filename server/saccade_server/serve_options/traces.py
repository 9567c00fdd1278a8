"""What traces of requests may take, in memory and on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade_server.serve_options.group import OptionGroup
from saccade_server.shell.paths import folder


@dataclass(frozen=True)
class TraceOptions(OptionGroup):
    """The folder of traces and their limits."""

    traces: Annotated[
        Path | None,
        typer.Option(
            callback=folder,
            help="Folder of traces behind links, which servers may share; if absent a private "
            "one, gone when the server ends.",
            envvar="SACCADE_TRACES",
        ),
    ] = None
    max_trace_bytes: Annotated[
        int,
        typer.Option(
            min=0,
            help="Bytes that the arrays of one request's trace may have; more gets a 413.",
            envvar="SACCADE_MAX_TRACE_BYTES",
        ),
    ] = 64 * 2**20
    trace_memory: Annotated[
        int,
        typer.Option(
            min=1,
            help="MiB that the traces of all requests may have in memory together, counted as if "
            "every answer were as long as it may be; more get a 503.",
            envvar="SACCADE_TRACE_MEMORY",
        ),
    ] = 512
    trace_disk: Annotated[
        int,
        typer.Option(
            min=1,
            help="MiB of traces that are kept behind links; the oldest leave.",
            envvar="SACCADE_TRACE_DISK",
        ),
    ] = 1024

    def check(self) -> None:
        """Try the folder.

        Raises:
            OSError: it cannot be used.
        """
        from saccade_server.api.traces.store import TraceStore

        if self.traces is not None:
            TraceStore(self.traces, 0).close()

    def settings(self) -> dict[str, Any]:
        """All of them, in bytes."""
        return {
            "traces": self.traces,
            "max_trace_bytes": self.max_trace_bytes,
            "max_traces_bytes": self.trace_memory * 2**20,
            "max_stored_traces_bytes": self.trace_disk * 2**20,
        }
