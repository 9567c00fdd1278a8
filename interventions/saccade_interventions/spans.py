"""Parts of a prompt as requests name them: token positions, and texts wherever they occur."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from saccade_interventions.context import Prompt, Span
from saccade_interventions.errors import Code, InterventionError, brief
from saccade_interventions.indices import Index


def _forward(span: list[int]) -> list[int]:
    if span[0] >= span[1]:
        raise PydanticCustomError("span", "a span is [start, end), with start before end")
    return span


TokenSpan = Annotated[list[Index], Field(min_length=2, max_length=2), AfterValidator(_forward)]
Text = Annotated[str, StringConstraints(min_length=1)]


def tokens_of(prompt: Prompt, span: list[int], param: str) -> Span:
    """A span of the prompt; ``param`` is where the request has it.

    Raises:
        InterventionError: it is not inside.
    """
    start, end = span
    if end > prompt.length:
        message = f"[{start}, {end}) is not inside the prompt of {prompt.length} tokens"
        raise InterventionError(Code.TARGET_NOT_FOUND, message, param)
    return start, end


def occurrences(prompt: Prompt, text: str, param: str) -> tuple[Span, ...]:
    """Whole tokens that overlap a text; ``param`` is where the request has it.

    Raises:
        InterventionError: it is nowhere, or too often.
    """
    try:
        found = prompt.find(text)
    except InterventionError as error:
        raise error.within(param) from None
    if not found:
        message = f"the prompt does not contain {brief(text)}"
        raise InterventionError(Code.TARGET_NOT_FOUND, message, param)
    return found
