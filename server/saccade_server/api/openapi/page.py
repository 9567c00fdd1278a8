"""GET /docs: the OpenAPI document in Swagger UI, all of it served from here.

The page and its scripts need no key and say nothing of this server; the document does, and its
calls carry the key that the user types. A Content-Security-Policy lets the page reach no other
origin.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

from fastapi import APIRouter, Response

DOCS = "/docs"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Swagger UI sets styles of single elements
        "img-src 'self' data:",  # the icons in its style sheet
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
OURS, SWAGGER = "saccade_server.api.openapi", "fastapi_swagger.resources"
HTML, STYLE, SCRIPT = (f"text/{kind}; charset=utf-8" for kind in ("html", "css", "javascript"))

PARTS: dict[str, tuple[str, str, str]] = {
    DOCS: (OURS, "page.html", HTML),
    f"{DOCS}/page.css": (OURS, "page.css", STYLE),
    f"{DOCS}/page.js": (OURS, "page.js", SCRIPT),
    f"{DOCS}/swagger-ui.css": (SWAGGER, "swagger-ui.css", STYLE),
    f"{DOCS}/swagger-ui-bundle.js": (SWAGGER, "swagger-ui-bundle.js", SCRIPT),
}
"""Path -> package, file, media type."""


def docs_router() -> APIRouter:
    """Make the routes."""
    router = APIRouter()
    for path, part in PARTS.items():
        router.add_api_route(path, _sender(*part), methods=["GET"], include_in_schema=False)
    return router


def _sender(package: str, name: str, media_type: str) -> Callable[[], Response]:
    file = files(package) / name

    def send() -> Response:
        return Response(file.read_bytes(), headers=HEADERS, media_type=media_type)

    return send
