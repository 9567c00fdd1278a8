"""Every error the client raises.

SaccadeError
├── InvalidInput          an argument cannot be sent; also a ValueError. Nothing left this machine
│   └── MissingPackage    an optional package is not installed; also an ImportError
├── ConnectionFailed      no reply: refused, reset, DNS, TLS
├── Timeout               no reply, or no next piece of one, in time
├── StreamInterrupted     a stream broke off before its end; carries the text so far
├── AnswerError           a whole answer came, and is not what was asked for; carries it
│   ├── AnswerTruncated   it reached max_tokens first
│   ├── AnswerRefused     the model refused, or a filter took its text away
│   ├── AnswerInvalid     its text is no JSON, or does not fit the type
│   └── ArgumentsInvalid  the arguments of a tool call are no JSON, or do not fit
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

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saccade_client.answers import ChatCompletion, Completion
    from saccade_client.tool_calls import ToolCall


class SaccadeError(Exception):
    """Base of everything this package raises."""


class InvalidInput(SaccadeError, ValueError):
    """An argument cannot be sent; no request was made for it."""


class MissingPackage(InvalidInput, ImportError):
    """An optional package is not installed; the message says how to get it."""


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


class AnswerError(SaccadeError):
    """The model's answer is not what was asked for, though nothing failed on the way.

    `text` is what it said and `answer` the whole reply, with its usage and receipt.
    """

    def __init__(
        self, message: str, *, text: str = "", answer: ChatCompletion | Completion | None = None
    ) -> None:
        super().__init__(message)
        self.text = text
        self.answer = answer

    @property
    def request_id(self) -> str | None:
        """The x-request-id header of the reply, where `answer` is known."""
        return self.answer.request_id if self.answer is not None else None


class AnswerTruncated(AnswerError):
    """The answer reached its greatest length before its end: give it more max_tokens."""


class AnswerRefused(AnswerError):
    """The model refused to answer, or a filter took its text away."""


class AnswerInvalid(AnswerError):
    """The answer's text is no JSON, or does not fit the type that it was to be read as."""


class ArgumentsInvalid(AnswerError):
    """A tool call's arguments are no JSON object, or do not fit; `text` is what they are."""

    def __init__(
        self,
        message: str,
        *,
        text: str = "",
        answer: ChatCompletion | Completion | None = None,
        call: ToolCall | None = None,
    ) -> None:
        super().__init__(message, text=text, answer=answer)
        self.call = call


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
