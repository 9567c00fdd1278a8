"""Pages that the server sends from its packages: no key, no origin but its own, nothing of itself.

What they show of the server they ask its API for, with the key that the user types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Response

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "png": "image/png",
}


@dataclass(frozen=True)
class Part:
    """A file of a page: the package that has it, and its place in there."""

    package: str
    name: str

    @property
    def media_type(self) -> str:
        """By the file's ending."""
        return MEDIA_TYPES[self.name.rpartition(".")[2]]

    def read(self) -> bytes:
        """The file."""
        return files(self.package).joinpath(self.name).read_bytes()


def policy(scripts: str = "'self'", styles: str = "'self'", images: str = "'self' data:") -> str:
    """A Content-Security-Policy under which a page reaches no other origin.

    Args:
        scripts: sources of scripts.
        styles: sources of styles.
        images: sources of images.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {scripts}",
            f"style-src {styles}",
            f"img-src {images}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def add_page(router: APIRouter, parts: Mapping[str, Part], allowed: str) -> None:
    """Make the routes of a page: by path, what is sent there under the policy ``allowed``."""
    for path, part in parts.items():
        router.add_api_route(
            path, _sender(part, allowed), methods=["GET", "HEAD"], include_in_schema=False
        )


def _sender(part: Part, allowed: str) -> Callable[[], Response]:
    headers = {
        "content-security-policy": allowed,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    def send() -> Response:
        return Response(part.read(), headers=headers, media_type=part.media_type)

    return send
