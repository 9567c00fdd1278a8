"""What a failure is called: the one place that turns a reply, or none, into an error."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2

from saccade_client.errors import (
    APIError,
    Authentication,
    BadRequest,
    Conflict,
    ConnectionFailed,
    InvalidInput,
    NotFound,
    RateLimited,
    SaccadeError,
    ServerBusy,
    ServerError,
    Timeout,
    TooLarge,
)

REQUEST_ID_HEADER = "x-request-id"
LONGEST_EXCERPT = 200
UNREADABLE = "invalid_response"
"""The code of answers that are not what a server sends."""

# An error inside a stream comes after the HTTP status; its type tells which one it would have had.
STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "rate_limit_error": 429,
    "overloaded_error": 503,
}

ERROR_OF_STATUS: dict[int, type[APIError]] = {
    400: BadRequest,
    401: Authentication,
    403: Authentication,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: BadRequest,
    429: RateLimited,
    503: ServerBusy,
}


def transport_error(error: httpx2.RequestError) -> SaccadeError:
    """Name a failure that left us without a reply, or with one that cannot be unpacked."""
    doing = f"{error.request.method} {error.request.url}"
    if isinstance(error, httpx2.DecodingError):
        message = f"{doing}: the server's answer could not be understood: {error}"
        return APIError(message, code=UNREADABLE)
    if isinstance(error, httpx2.TimeoutException):
        return Timeout(f"{doing}: timed out ({type(error).__name__})")
    return ConnectionFailed(f"{doing}: {error or type(error).__name__}")


def reply_error(response: httpx2.Response) -> APIError:
    """Build the error for a reply that has been read and is not a success."""
    body = decoded(response.content)
    status = response.status_code
    fields = error_fields(body)
    message = fields.pop("message", None) or plain_message(response, body)
    error = ERROR_OF_STATUS.get(status, ServerError if status >= 500 else APIError)
    request_id = response.headers.get(REQUEST_ID_HEADER)
    return error(message, status=status, request_id=request_id, body=body, **fields)


def unreadable(response: httpx2.Response, message: str) -> APIError:
    """Build the error for a success whose body has been read and is not what was due."""
    return APIError(
        f"the server's answer could not be understood: {message}",
        status=response.status_code,
        code=UNREADABLE,
        request_id=response.headers.get(REQUEST_ID_HEADER),
        body=decoded(response.content),
    )


@contextmanager
def environment_checked() -> Iterator[None]:
    """Name what the variables for proxies and certificates make fail when a client is made."""
    try:
        yield
    except (ValueError, OSError, httpx2.InvalidURL) as error:
        message = f"the environment's proxies or certificates cannot be used: {error}"
        raise InvalidInput(message) from error


def streamed_error(body: Mapping[str, Any], request_id: str | None) -> APIError:
    """Build the error for an `{"error": …}` object that came inside a stream."""
    fields = error_fields(body)
    message = fields.pop("message", None) or "the server reported an error inside the stream"
    status = type_status(body["error"])
    error = ERROR_OF_STATUS.get(status, ServerError)
    return error(message, status=status, request_id=request_id, body=body, **fields)


def type_status(error: Any) -> int:
    kind = error.get("type") if isinstance(error, Mapping) else None
    return STATUS_OF_TYPE.get(kind, 500) if isinstance(kind, str) else 500


def error_fields(body: Any) -> dict[str, str]:
    """Pick message, code and param out of an OpenAI error object, tolerating other shapes."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if isinstance(error, str):
        return {"message": error}
    if not isinstance(error, Mapping):
        return {}
    names = ("message", "code", "param")
    return {name: str(error[name]) for name in names if error.get(name) is not None}


def plain_message(response: httpx2.Response, body: Any) -> str:
    """Describe a reply without an error object: a proxy's page, an empty body, a redirect."""
    if target := response.headers.get("location"):
        return f"redirected to {target}: set base_url to where the server is"
    text = body if isinstance(body, str) else json.dumps(body)
    return text.strip()[:LONGEST_EXCERPT] or response.reason_phrase or "empty reply"


def decoded(content: bytes) -> Any:
    """Return the JSON value in `content`, or its text where it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace")
