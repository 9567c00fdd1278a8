"""Read an answer's text as a value of a type, or say why it is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from saccade_client import schemas
from saccade_client.errors import (
    AnswerError,
    AnswerInvalid,
    AnswerRefused,
    AnswerTruncated,
    InvalidInput,
)

if TYPE_CHECKING:
    from saccade_client.answers import ChatCompletion, Completion

T = TypeVar("T")


def parsed(kind: type[T], text: str, finish_reason: str | None) -> T:
    """Return what a whole text says in JSON.

    Raises AnswerTruncated, AnswerRefused, AnswerInvalid, and InvalidInput for what is no type.
    """
    if finish_reason == "length":
        message = "the answer reached its greatest length before its end; see max_tokens"
        raise AnswerTruncated(message, text=text)
    if finish_reason == "content_filter":
        raise AnswerRefused("a filter took the answer's text away", text=text)
    try:
        return schemas.read(kind, text)
    except InvalidInput:
        raise
    except ValueError as error:
        message = f"the answer is no {schemas.name_of(kind)}: {error}"
        raise AnswerInvalid(message, text=text) from error


@contextmanager
def carried_by(answer: ChatCompletion | Completion) -> Iterator[None]:
    """Put the whole answer into errors about a part of it."""
    try:
        yield
    except AnswerError as error:
        error.answer = answer
        raise
