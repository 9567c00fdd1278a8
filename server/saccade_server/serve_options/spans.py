"""Whether spans of requests are sent, and where."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from saccade_server.serve_options.group import OptionGroup

logger = logging.getLogger("saccade")


@dataclass(frozen=True)
class SpanOptions(OptionGroup):
    """Spans."""

    otlp_traces_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send spans of requests to an OpenTelemetry collector: "
            "http://localhost:4318 (OTLP over HTTP; /v1/traces is added where there is no path). "
            "OTEL_EXPORTER_OTLP_ENDPOINT says the same, and OpenTelemetry's other variables the "
            "rest. Needs the extra otel.",
            envvar="SACCADE_OTLP_TRACES_ENDPOINT",
        ),
    ] = None

    def check(self) -> None:
        """Try to make spans, so that OpenTelemetry's variables are read before a model is.

        Raises:
            SpansError: there is no such endpoint, or the extra is not installed.
        """
        from saccade_server.api.spans.endpoint import SpansError

        endpoint = self.settings()["otlp_traces_endpoint"]
        if endpoint is None:
            return
        from saccade_server.api.spans.sender import Sender

        try:
            Sender(endpoint).close()
        except ValueError as error:
            raise SpansError(f"a variable of OpenTelemetry (OTEL_...): {error}") from None

    def settings(self) -> dict[str, Any]:
        """The URL; without the extra, what only the environment says counts for nothing.

        Raises:
            SpansError: as by :meth:`check`.
        """
        from saccade_server.api.spans.endpoint import NEEDS_EXTRA, OPTION, SpansError, endpoint

        found = endpoint(self.otlp_traces_endpoint, os.environ)
        if found is None:
            return {"otlp_traces_endpoint": None}
        url, source = found
        if _installed():
            return {"otlp_traces_endpoint": url}
        if source == OPTION:
            raise SpansError(NEEDS_EXTRA.format(OPTION))
        # Clusters set these variables for every process.
        logger.warning("no spans are sent: %s", NEEDS_EXTRA.format(source))
        return {"otlp_traces_endpoint": None}


def _installed() -> bool:
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError:
        return False
    return True
