"""Browser pages of other origins: none may read answers unless the operator lists it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from saccade_server.api.errors import BadRequest

METHODS = ("DELETE", "GET", "HEAD", "POST", "PUT")
EXPOSED = (
    "location",
    "retry-after",
    "x-intervention-fingerprint",
    "x-intervention-profile",
    *(
        f"x-ratelimit-{what}-{kind}"
        for kind in ("requests", "tokens", "images")
        for what in ("limit", "remaining", "reset")
    ),
    "x-request-id",
    "x-saccade-deployment",
    "x-saccade-ignored-fields",
    "x-should-retry",
)
"""Headers of answers that a page may read beside those it always may."""

ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:]+\])(:[0-9]+)?")


class Cors(CORSMiddleware):
    """Answers preflights, and lets pages of the given origins read every answer, errors too.

    Keys are a header of their own and no browser adds it, so credentials stay off.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """As the base class, with a refusal in this API's form."""
        answer = super().preflight_response(request_headers)
        if answer.status_code != 400:
            return answer
        message = (
            "Pages of this origin may not ask, or not so: --cors-origin lists the origins that may."
        )
        refusal = BadRequest(message, code="cors_not_allowed").response()
        answer.headers.update(refusal.headers)
        answer.body = refusal.body
        return answer


def check_origins(origins: Iterable[str]) -> tuple[str, ...]:
    """The origins of ``--cors-origin`` as browsers send them: scheme, host and port, or ``*``.

    Raises:
        ValueError: one of them is no origin; the message says which.
    """
    checked = []
    for origin in origins:
        name = origin.strip().lower()
        if not ORIGIN.fullmatch(name):
            raise ValueError(
                f"--cors-origin {origin!r}: give an origin, such as http://localhost:5173, "
                "without a path or a slash behind it, or '*' for any"
            )
        checked.append(name)
    return tuple(checked)
