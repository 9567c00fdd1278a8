"""Which bodies are read at all: JSON is posted, an artifact's bytes are put, nothing compressed."""

from __future__ import annotations

from starlette.datastructures import Headers

from saccade_server.api.errors import UnsupportedMedia

BINARY = ("", "application/octet-stream", "application/safetensors", "application/x-safetensors")


def check_media(method: str, headers: Headers) -> None:
    """Refuse a body of another type.

    A browser asks before it sends JSON or a PUT to another site: no page can send either unasked.

    Raises:
        UnsupportedMedia: it is none that the method takes.
    """
    if method == "POST":
        _check_json(headers)
    else:
        _check_binary(headers)
    encodings = headers.getlist("content-encoding")
    if any(encoding.strip().lower() not in ("", "identity") for encoding in encodings):
        raise UnsupportedMedia("Compressed bodies are not read.")


def _check_binary(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in BINARY:
        raise UnsupportedMedia("The content type must be application/octet-stream.")


def _check_json(headers: Headers) -> None:
    kind, *parameters = headers.get("content-type", "").split(";")
    if kind.strip().lower() != "application/json":
        raise UnsupportedMedia("The content type must be application/json.")
    for parameter in parameters:
        name, _, value = parameter.lower().partition("=")
        if name.strip() == "charset" and value.strip(' "') not in ("utf-8", "utf8"):
            raise UnsupportedMedia("The charset must be UTF-8.")
