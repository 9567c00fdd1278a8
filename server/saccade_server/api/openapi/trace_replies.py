"""What a choice says of its trace; see :mod:`~saccade_server.api.openapi.replies`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from saccade_server.api.openapi.absent import Absent


class TraceView(BaseModel):
    """One view of an image: a run of the prompt's tokens, one for each cell of a grid."""

    start: int = Field(description="Position of its first token.")
    length: int
    grid: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(
        description="Rows and columns."
    )
    box: Annotated[list[float], Field(min_length=4, max_length=4)] = Field(
        description="What the grid shows of the image, left, top, right, bottom, in fractions of "
        "its sides; what lies outside of 0 to 1 is padding."
    )
    size: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(
        description="Width and height of the whole image in pixels, as it was sent."
    )


class TracedArray(BaseModel):
    """An array of a trace."""

    dtype: Literal["float32", "int32", "uint8"]
    shape: list[int]
    axes: list[str]
    unit: str
    coordinates: dict[str, list[int] | list[str]] = Field(
        description="What lies at each place of an axis: positions, layers, heads, classes."
    )
    mean_over: dict[str, list[int]] = Field(
        description="Axes that are averaged over, and what of them."
    )
    data: Absent[Any] = Field(
        description="Nested lists, null where a number is not finite; or the base64 of "
        "little-endian numbers in C order. Absent where the trace has a link."
    )


class AnswerTrace(BaseModel):
    """What was recorded while an answer was computed."""

    prompt_tokens: int
    question: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(
        description="Positions behind the prompt's last image, end exclusive."
    )
    images: list[list[TraceView]] = Field(description="The views of each image.")
    arrays: dict[str, TracedArray]
    token_texts: dict[str, str] = Field(description="The texts of tokens that arrays name.")
    bytes: int = Field(description="Of all arrays, as raw numbers.")
    link: Absent[str] = Field(description="Where the arrays are, as a safetensors file.")
