"""Every failure as one OpenAI error object, and the one place that makes it.

ApiError                500  internal_error: nothing about the cause leaves the server
├── BadRequest          400  the request is wrong; ``param`` is the JSON path
├── Unauthorized        401
├── Forbidden           403  the key may not do this
├── NotFound            404
├── MethodNotAllowed    405
├── Timeout             408  the request's body did not come
├── Conflict            409  what the server has does not allow it
├── TooLarge            413
├── UnsupportedMedia    415
├── Misdirected         421  a Host that this server does not answer to
├── Unprocessable       422  something the request points to could not be fetched
├── RateLimited         429  the key has had enough for now
├── HeadersTooLarge     431
├── Unavailable         503  nothing was begun; try again later: overloaded, draining, engine gone
├── Interrupted         500  it was begun, and server or engine ended before it; try again
└── EngineFailure       500  this request failed in the engine; repeating it will not help

A proxy may send what got a 503 to another server: it was not begun. What was begun may be why the
engine died, so it is for the client to decide whether it is sent again.
"""

from __future__ import annotations

import math

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from saccade_interventions.errors import InterventionError
from saccade_server.api.layers.record import record_of
from saccade_server.engine.client import CapacityError, EngineDeadError
from saccade_server.requests.errors import RequestError

LONGEST_MESSAGE = 1000
LONGEST_ECHO = 200

NO_RETRY = {"x-should-retry": "false"}


class ApiError(Exception):
    """A failure with everything its error object needs."""

    status = 500
    kind = "server_error"
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, object]:
        """The error object."""
        return {
            "error": {
                "message": bounded(self.message, LONGEST_MESSAGE),
                "type": self.kind,
                "param": None if self.param is None else bounded(self.param),
                "code": self.code,
            }
        }

    def json(self) -> bytes:
        """The error object, encoded."""
        return msgspec.json.encode(self.body())

    def response(self) -> Response:
        """The whole HTTP response."""
        return _ErrorResponse(self)


class _ErrorResponse(Response):
    """The answer to a request that was refused or failed; notes that in its record."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.json(), error.status, error.headers, "application/json")
        self.error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record_of(scope).fail(self.error.code, self.error.param)
        await super().__call__(scope, receive, send)


class BadRequest(ApiError):
    """The request is wrong; sending it again will not help."""

    status = 400
    kind = "invalid_request_error"
    code = "invalid_value"


class Unauthorized(BadRequest):
    """No key, or not one of ours."""

    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"


class Forbidden(BadRequest):
    """A key, but not one that may do this."""

    status = 403
    kind = "permission_error"
    code = "admin_key_required"


class NotFound(BadRequest):
    """No such route, model or method."""

    status = 404
    code = "not_found"


class MethodNotAllowed(BadRequest):
    """The route exists, the HTTP method does not."""

    status = 405
    code = "method_not_allowed"


class Timeout(BadRequest):
    """The request did not arrive in time."""

    status = 408
    code = "request_timeout"


class Conflict(BadRequest):
    """What the server has does not allow it."""

    status = 409
    code = "conflict"


class TooLarge(BadRequest):
    """More bytes than the server reads."""

    status = 413
    code = "request_too_large"


class UnsupportedMedia(BadRequest):
    """The body is not plain JSON."""

    status = 415
    code = "unsupported_media_type"


class Misdirected(BadRequest):
    """The request was meant for a host that is none of ours."""

    status = 421
    code = "host_not_allowed"


class RateLimited(BadRequest):
    """The key has had enough for now; ``wait``: seconds until it may have more."""

    status = 429
    kind = "rate_limit_error"
    code = "rate_limited"

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message, headers={"retry-after": str(max(math.ceil(wait), 1))})


class HeadersTooLarge(BadRequest):
    """More headers, or longer ones, than the server reads."""

    status = 431
    code = "headers_too_large"

    def __init__(self) -> None:
        message = "The request has too many headers, or too long ones."
        super().__init__(message, headers={"connection": "close"})


class Unprocessable(BadRequest):
    """What the request points to could not be had."""

    status = 422
    code = "unprocessable"


class Unavailable(ApiError):
    """Nothing is wrong with the request; the server cannot take it now."""

    status = 503
    kind = "overloaded_error"
    code = "server_overloaded"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after: int = 1, close: bool = False
    ) -> None:
        headers = {"retry-after": str(retry_after)}
        if close:
            headers["connection"] = "close"
        super().__init__(message, code=code, headers=headers)


class Interrupted(Unavailable):
    """Nothing was wrong with the request; it was begun, and nobody is there to end it."""

    status = 500


class EngineFailure(ApiError):
    """The engine failed on this request."""

    code = "engine_failure"

    def __init__(self) -> None:
        super().__init__("The engine failed on this request.", headers=NO_RETRY)


REFUSALS = (
    ApiError,
    InterventionError,
    RequestError,
    CapacityError,
    EngineDeadError,
    HTTPException,
)
"""What :func:`from_exception` knows; anything else is a surprise."""


def bounded(text: str, limit: int = LONGEST_ECHO) -> str:
    """Cut ``text`` so that an error cannot be used to make the server send much."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def unsupported(param: str, message: str) -> BadRequest:
    """Refuse a feature that would otherwise be silently left undone."""
    return BadRequest(message, code="unsupported_parameter", param=param)


def draining() -> Unavailable:
    """Refuse new work while the server shuts down."""
    message = "The server is shutting down; another one can take this request."
    return Unavailable(message, code="server_draining", close=True)


def begun(error: Exception) -> Exception:
    """What becomes of an error that would mean, of a request that was begun, that it was not."""
    found = from_exception(error)
    if isinstance(found, Unavailable):
        return Interrupted(found.message, code=found.code)
    return error


def from_exception(error: BaseException) -> ApiError:
    """Turn anything raised while serving into what the client may see of it."""
    match error:
        case ApiError():
            return error
        case InterventionError() | RequestError():
            refusal = BadRequest(str(error.message), code=error.code, param=error.param)
            refusal.status = error.status
            return refusal
        case CapacityError():
            return Unavailable("The server has no room for this request now; try again soon.")
        case EngineDeadError():
            return Unavailable("The engine has stopped.", code="engine_dead", retry_after=5)
        case HTTPException():
            return _from_http(error)
    return ApiError("The server failed on this request.", headers=NO_RETRY)


def _from_http(error: HTTPException) -> ApiError:
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return NotFound("There is no such route.", headers=headers)
    if error.status_code == 405:
        return MethodNotAllowed("This route does not offer that HTTP method.", headers=headers)
    refusal = BadRequest("The request was refused.", headers=headers)
    refusal.status = error.status_code
    return refusal
