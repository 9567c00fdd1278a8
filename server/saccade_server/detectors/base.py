"""The base class of every detector: its facts, its parameters, the trace it needs, its formula.

A detector is a pydantic model. Its fields are the parameters that an entry may set; its class facts
are what `saccade inspect` and the API tell about it. ``trace`` is the request's ``trace`` as data,
and ``scores`` is a pure function of the arrays that came back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from saccade_interventions.indices import Indices
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.targets import check_layers
from saccade_server.detectors.traced import Scores, Traced

TokenOf = Callable[[str], int | None]
"""The token that a text inside a prompt is, None if it is none or several."""


class Detector(BaseModel):
    """One entry of ``detectors``. Subclasses set the class facts, ``trace`` and ``scores``.

    ``suspect`` says on which side of a threshold an answer is flagged. Unknown fields and lax types
    are refused.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    title: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    unit: ClassVar[str]
    suspect: ClassVar[Literal["low", "high"]]
    needs_image: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    """Whether it also reads ``logprobs`` and ``logprobs.without_images``: those of the answer's
    tokens behind the prompt, and behind the prompt without its images, [row] nats each."""

    threshold: float | None = None
    """Where an answer is flagged. None: it is scored and not judged."""

    @abstractmethod
    def trace(self, model: ModelFacts, token_of: TokenOf) -> dict[str, Any]:
        """The request's ``trace`` that :meth:`scores` reads.

        Raises:
            InterventionError: a layer that the model does not have.
        """

    @abstractmethod
    def scores(self, traced: Traced) -> Scores:
        """The formula."""

    def flagged(self, score: float | None) -> bool | None:
        """Whether an answer with this score is suspicious; None without a score or threshold."""
        if score is None or self.threshold is None:
            return None
        return score < self.threshold if self.suspect == "low" else score > self.threshold

    @classmethod
    def detector_id(cls) -> str:
        """The name that an entry calls it by."""
        return str(cls.model_fields["name"].default)


class InLayers(Detector):
    """A detector that reads some layers."""

    layers: Indices | None = None
    """Decoder layers, counted from 0. None: the detector's own choice for the model."""

    def default_layers(self, model: ModelFacts) -> tuple[int, ...]:
        """The layers that are read when the entry names none."""
        return tuple(range(model.layers))

    def layers_of(self, model: ModelFacts) -> list[int]:
        """The layers, in order.

        Raises:
            InterventionError: one that the model does not have.
        """
        if self.layers is None:
            return list(self.default_layers(model))
        check_layers(self.layers, model)
        return sorted(self.layers)
