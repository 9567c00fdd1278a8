"""Command-line options of the HTTP side of ``saccade serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from saccade_server.shell.paths import folder

AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host",
        metavar="NAME",
        help="Without --api-key, answer to this Host too, beside IP addresses, localhost and this "
        "machine's name; '*.example.com' is every name below one, '*' any. Repeat for several. "
        "SACCADE_ALLOWED_HOST holds one, or several with commas between.",
    ),
]
AllowedMediaDomains = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-media-domain",
        metavar="NAME",
        help="With --allow-image-urls, fetch only from this host. Repeat for several. "
        "SACCADE_ALLOWED_MEDIA_DOMAIN holds one, or several with commas between.",
    ),
]
CorsOrigins = Annotated[
    list[str] | None,
    typer.Option(
        "--cors-origin",
        metavar="ORIGIN",
        help="Let browser pages of this origin (https://app.example.com) ask and read answers; "
        "'*': of any. Repeat for several. "
        "SACCADE_CORS_ORIGIN holds one, or several with commas between.",
    ),
]
MaxConnections = Annotated[
    int,
    typer.Option(
        min=1,
        help="Connections at once; more are refused, all but probes.",
        envvar="SACCADE_MAX_CONNECTIONS",
    ),
]
MaxRequests = Annotated[
    int,
    typer.Option(
        min=1,
        help="Requests being answered at once; more get a 503.",
        envvar="SACCADE_MAX_REQUESTS",
    ),
]
BodyMemory = Annotated[
    int,
    typer.Option(
        min=1,
        help="MiB that the bodies of all requests may take in memory together; images that are "
        "fetched may take as much.",
        envvar="SACCADE_BODY_MEMORY",
    ),
]
HeaderTimeout = Annotated[
    float,
    typer.Option(
        min=0.1,
        help="Seconds that a connection may take to send its first headers, or the next ones.",
        envvar="SACCADE_HEADER_TIMEOUT",
    ),
]
KeepAliveTimeout = Annotated[
    int,
    typer.Option(
        min=0,
        help="Seconds that a connection may be idle between two requests; behind a proxy, more "
        "than the proxy's own.",
        envvar="SACCADE_KEEP_ALIVE_TIMEOUT",
    ),
]
ImageWorkers = Annotated[
    int,
    typer.Option(
        min=1,
        help="Threads that decode images; those over 16 megapixels have one more.",
        envvar="SACCADE_IMAGE_WORKERS",
    ),
]
PixelsInFlight = Annotated[
    int,
    typer.Option(
        min=1,
        help="Pixels that the images of all requests may have together while they wait and are "
        "decoded, as they are or as the model is shown them, whichever is more; beyond it requests "
        "with images get a 503.",
        envvar="SACCADE_MAX_PIXELS_IN_FLIGHT",
    ),
]
Traces = Annotated[
    Path | None,
    typer.Option(
        callback=folder,
        help="Folder of traces behind links, which servers may share; if absent a private one, "
        "gone when the server ends.",
        envvar="SACCADE_TRACES",
    ),
]
MaxTraceBytes = Annotated[
    int,
    typer.Option(
        min=0,
        help="Bytes that the arrays of one request's trace may have; more gets a 413.",
        envvar="SACCADE_MAX_TRACE_BYTES",
    ),
]
TraceMemory = Annotated[
    int,
    typer.Option(
        min=1,
        help="MiB that the traces of all requests may have in memory together, counted as if "
        "every answer were as long as it may be; more get a 503.",
        envvar="SACCADE_TRACE_MEMORY",
    ),
]
TraceDisk = Annotated[
    int,
    typer.Option(
        min=1,
        help="MiB of traces that are kept behind links; the oldest leave.",
        envvar="SACCADE_TRACE_DISK",
    ),
]
RequestTimeout = Annotated[
    float,
    typer.Option(
        min=0.1,
        help="Seconds that a request may take, its preparation included; then it gets a 504.",
        envvar="SACCADE_REQUEST_TIMEOUT",
    ),
]


def listed(options: list[str] | None, variable: str) -> tuple[str, ...]:
    """What was given as options, or else in the environment with commas between."""
    given = options or os.environ.get(variable, "").split(",")
    return () if not options and given == [""] else tuple(given)
