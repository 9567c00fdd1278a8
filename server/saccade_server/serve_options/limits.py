"""How much clients may have at once, and how long anything may take."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from saccade_server.serve_options.group import OptionGroup


class OnHang(StrEnum):
    """What to do about an engine that hangs."""

    REPORT = "report"
    EXIT = "exit"


@dataclass(frozen=True)
class LimitOptions(OptionGroup):
    """Connections, requests, bodies; times of clients, of requests and of the engine."""

    max_connections: Annotated[
        int,
        typer.Option(
            min=1,
            help="Connections at once; more are refused, all but probes.",
            envvar="SACCADE_MAX_CONNECTIONS",
        ),
    ] = 1024
    max_requests: Annotated[
        int,
        typer.Option(
            min=1,
            help="Requests being answered at once; more get a 503.",
            envvar="SACCADE_MAX_REQUESTS",
        ),
    ] = 512
    body_memory: Annotated[
        int,
        typer.Option(
            min=1,
            help="MiB that the bodies of all requests may take in memory together; images that "
            "are fetched may take as much.",
            envvar="SACCADE_BODY_MEMORY",
        ),
    ] = 512
    header_timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Seconds that a connection may take to send its first headers, or the next ones.",
            envvar="SACCADE_HEADER_TIMEOUT",
        ),
    ] = 20.0
    keep_alive_timeout: Annotated[
        int,
        typer.Option(
            min=0,
            help="Seconds that a connection may be idle between two requests; behind a proxy, "
            "more than the proxy's own.",
            envvar="SACCADE_KEEP_ALIVE_TIMEOUT",
        ),
    ] = 5
    request_timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Seconds that a request may take, its preparation included; then it gets a 504.",
            envvar="SACCADE_REQUEST_TIMEOUT",
        ),
    ] = 600.0
    max_queue_time: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds that a request may have to wait before it begins; one that would wait "
            "longer, by what requests took so far, gets a 503 at once. If absent the time that it "
            "has.",
            envvar="SACCADE_MAX_QUEUE_TIME",
        ),
    ] = None
    shutdown_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that requests in flight have to finish once the server is told to stop.",
            envvar="SACCADE_SHUTDOWN_TIMEOUT",
        ),
    ] = 30.0
    silence_timeout: Annotated[
        float,
        typer.Option(
            min=1,
            help="Seconds without a sign of life from the engine's process after which /ready says "
            "no; after twice as long /live does.",
            envvar="SACCADE_SILENCE_TIMEOUT",
        ),
    ] = 20.0
    step_timeout: Annotated[
        float,
        typer.Option(
            min=1,
            help="The same for an engine that lives: seconds with work and without the end of a "
            "step.",
            envvar="SACCADE_STEP_TIMEOUT",
        ),
    ] = 180.0
    on_hang: Annotated[
        OnHang,
        typer.Option(
            help="What follows when /live says no: report leaves it to who reads probes, exit ends "
            "the server with code 4.",
            envvar="SACCADE_ON_HANG",
        ),
    ] = OnHang.REPORT

    def settings(self) -> dict[str, Any]:
        """All but what follows a hang; memory in bytes."""
        same = (
            "max_connections", "max_requests", "header_timeout", "keep_alive_timeout",
            "request_timeout", "max_queue_time", "shutdown_timeout", "silence_timeout",
            "step_timeout",
        )  # fmt: skip
        bodies = {"max_bodies_bytes": self.body_memory * 2**20}
        return bodies | {name: getattr(self, name) for name in same}
