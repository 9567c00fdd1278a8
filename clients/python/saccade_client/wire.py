"""How all answers of the server are read: immutable, and open to fields of newer servers."""

from typing import TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PrivateAttr

WIRE = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True, protected_namespaces=())
NULL_IS_EMPTY = BeforeValidator(lambda value: value or [])
"""Of lists that are null where there is nothing."""


class Wire(BaseModel):
    """Base of all answers: immutable, and open to fields of newer servers."""

    model_config = WIRE


class Reply(Wire):
    """A whole answer, which remembers the request id its header carried."""

    _request_id: str | None = PrivateAttr(default=None)

    @property
    def request_id(self) -> str | None:
        """The x-request-id header: quote it when you report a problem."""
        return self._request_id


ReplyT = TypeVar("ReplyT", bound=Reply)


def with_request_id(reply: ReplyT, request_id: str | None) -> ReplyT:
    reply._request_id = request_id
    return reply
