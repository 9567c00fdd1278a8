"""Every error the client raises, and the one place that turns a reply into one.

SaccadeError
├── InvalidInput          an argument cannot be sent; also a ValueError. Nothing left this machine
├── ConnectionFailed      no reply: refused, reset, DNS, TLS
├── Timeout               no reply, or no next piece of one, in time
├── StreamInterrupted     a stream broke off before its end; carries the text so far
└── APIError              the server answered with an error, or with something unreadable
    ├── BadRequest        400, 422
    ├── Authentication    401, 403
    ├── NotFound          404
    ├── Conflict          409
    ├── TooLarge          413
    ├── RateLimited       429
    └── ServerError       500 and above
        └── ServerBusy    503
"""

import json
from collections.abc import Mapping
from typing import Any

import httpx2

REQUEST_ID_HEADER = "x-request-id"
LONGEST_EXCERPT = 200

# An error inside a stream comes after the HTTP status; its type tells which one it would have had.
STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "rate_limit_error": 429,
    "overloaded_error": 503,
}


class SaccadeError(Exception):
    """Base of everything this package raises."""


class InvalidInput(SaccadeError, ValueError):
    """An argument cannot be sent; no request was made for it."""


class ConnectionFailed(SaccadeError):
    """No reply came; the cause is the transport's own exception."""


class Timeout(SaccadeError):
    """The server did not answer, or went silent inside its answer, for too long."""


class StreamInterrupted(SaccadeError):
    """A stream broke off; `text` is what the first choice had said until then."""

    def __init__(self, message: str, *, text: str = "", request_id: str | None = None) -> None:
        super().__init__(message)
        self.text = text
        self.request_id = request_id


class APIError(SaccadeError):
    """The server's own error.

    `status` is the HTTP status (inside a stream: the one its type stands for), `param` the
    JSON path of the offending field, `body` the decoded JSON or the text that came.
    """

    # Every keyword has a default so that the exception survives pickling between processes.
    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        body: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.body = body

    def __str__(self) -> str:
        code = f" {self.code}" if self.code else ""
        param = f" at {self.param}" if self.param else ""
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.status}{code}{param}: {self.message}{request}"


class BadRequest(APIError):
    """400 or 422: the request is wrong; `param` says where."""


class Authentication(APIError):
    """401 or 403: the API key is missing, wrong or not allowed to do this."""


class NotFound(APIError):
    """404: no such model, method or route."""


class Conflict(APIError):
    """409: what the server has does not allow it."""


class TooLarge(APIError):
    """413: the body or the intervention list is over the server's limit."""


class RateLimited(APIError):
    """429: too many requests for this key."""


class ServerError(APIError):
    """500 and above: the server failed."""


class ServerBusy(ServerError):
    """503: overloaded, draining or out of intervention rows; a later try may succeed."""


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
    """Name a failure that left us without a reply."""
    doing = f"{error.request.method} {error.request.url}"
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
