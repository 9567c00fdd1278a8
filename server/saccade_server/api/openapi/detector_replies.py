"""What a choice says of its detectors; see :mod:`~saccade_server.api.openapi.replies`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Detected(BaseModel):
    """What one detector found in an answer."""

    name: str
    score: float | None = Field(description="Of the whole answer; null where it has none.")
    unit: str
    suspect: Literal["low", "high"] = Field(
        description="Scores on this side of a threshold are flagged."
    )
    threshold: float | None = Field(description="The request's own.")
    flagged: bool | None = Field(description="null without a score or a threshold.")
    reason: str | None = Field(description="Why there is no score.")
    tokens: list[float | None] | None = Field(
        description="A score for each of the answer's tokens, null where it has none."
    )
    values: dict[str, Any] = Field(description="What the score is made of, by detector.")
