"""What detectors of a request read of its answers, and what they make of it.

detection = prepare_detection(...)       # all checks; nothing runs
watched = detection.collect()            # of one answer
watched.add(pieces); watched.say(token, logprob)
results = watched.results(texts, ...)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.branches import deleted_plan
from saccade_interventions.context import Context
from saccade_interventions.errors import InterventionError
from saccade_interventions.plan import Plan
from saccade_server.detectors.base import Detector, TokenOf
from saccade_server.detectors.traced import Scores, Traced
from saccade_server.engine.limits import acts_on_draws
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.traces.data import AnyReading, TracePiece
from saccade_server.requests.branches import text_alone
from saccade_server.requests.detectors import FIELD, trace_of
from saccade_server.requests.errors import RequestError, TooMuch
from saccade_server.requests.prepared import Prepared
from saccade_server.requests.scores import scoring
from saccade_server.requests.traces.arrays import TraceArray
from saccade_server.requests.traces.options import TraceOptions
from saccade_server.requests.traces.resolve import TracePlan, check_plan, resolve
from saccade_server.requests.traces.scope import REQUIRES_IMAGE, UNDEFINED, Scope

LACKING = (REQUIRES_IMAGE, UNDEFINED)
"""Codes of what a prompt lacks: a detector has no score then, and is not refused."""

ARTIFACT_KIND = "density"

Density = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Part:
    """One detector of one prompt. Without ``plan`` it has no score, and ``reason`` says why."""

    detector: Detector
    plan: TracePlan | None
    reason: str | None = None
    density: Density | None = None


@dataclass(frozen=True)
class Blind:
    """A prompt without its images, and what edits are left of its plan."""

    tokens: tuple[int, ...]
    plan: Plan | None

    def request(self, request_id: str, answer: tuple[int, ...], salt: str) -> GenerateRequest:
        """What tells how likely an answer is behind it; it draws nothing."""
        request = GenerateRequest(
            request_id=request_id,
            tokens=self.tokens,
            sampling=SamplingParams(max_tokens=len(answer)),
            plan=self.plan,
            cache_salt=salt,
            given=answer,
        )
        return scoring(request, len(self.tokens) - 1, answer, 0)


@dataclass(frozen=True)
class Detection:
    """The detectors of one prompt's answers. ``blind`` is the prompt without its images, for those
    that compare.
    """

    parts: tuple[Part, ...]
    scope: Scope
    blind: Blind | None = None

    @property
    def plans(self) -> tuple[TracePlan, ...]:
        """What is read, by detector."""
        return tuple(part.plan for part in self.parts if part.plan is not None)

    @property
    def readings(self) -> tuple[AnyReading, ...]:
        """All readings."""
        return tuple(reading for plan in self.plans for reading in plan.trace.readings)

    @property
    def bytes(self) -> int:
        """Those of all that is read of one answer, if it is as long as it may be."""
        return sum(plan.bytes for plan in self.plans)

    def collect(self) -> Watched:
        """Where the pieces of one answer are put together."""
        return Watched(self)


class Watched:
    """What the detectors of one answer have read so far."""

    def __init__(self, detection: Detection) -> None:
        self.detection = detection
        self.tokens: list[int] = []  # that the answer shows
        self._logprobs: list[float] = []
        self._sums = [None if p.plan is None else p.plan.collect() for p in detection.parts]

    def add(self, pieces: Iterable[TracePiece], generated: int | None = None) -> None:
        """Keep what a step read; see :meth:`TraceSum.add`."""
        listed = list(pieces)
        for each in self._sums:
            if each is not None:
                each.add(listed, generated)

    def say(self, token: int, logprob: float | None) -> None:
        """Note a token that the answer shows."""
        self.tokens.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)

    def results(
        self, drawn: int, texts: Sequence[str], blind: Sequence[float] = ()
    ) -> list[dict[str, Any]]:
        """What all detectors found, in the order of the request, for JSON.

        Args:
            drawn: tokens of the sequence, one that ended it included.
            texts: of the tokens that the answer shows.
            blind: their log-probabilities without the images, if some detector compares.

        Raises:
            TraceLostError: the engine left out something that was asked for.
        """
        scope = self.detection.scope
        rows: dict[str, Sequence[Any]] = {
            "row": range(scope.length - 1, scope.length - 1 + len(texts))
        }
        compared = {"logprobs": self._logprobs, "logprobs.without_images": blind}
        found = []
        for part, each in zip(self.detection.parts, self._sums, strict=True):
            if each is None:
                found.append(as_json(part.detector, Scores(None, reason=part.reason)))
                continue
            read = each.arrays(drawn)
            arrays = {name: array.values for name, array in read.items()}
            coordinates = {name: _coordinates(array) for name, array in read.items()}
            if part.detector.compares:
                arrays |= {name: np.asarray(values) for name, values in compared.items()}
                coordinates |= dict.fromkeys(compared, rows)
            traced = Traced(
                arrays=arrays,
                coordinates=coordinates,
                prompt=scope.length,
                tokens=len(texts),
                images=scope.prompt.images,
                texts=texts,
                density=part.density,
            )
            found.append(as_json(part.detector, part.detector.scores(traced)))
        return found


def prepare_detection(
    detectors: Sequence[Detector], scope: Scope, prompt: Prepared, token_of: TokenOf, most: int
) -> Detection:
    """Look up everything that detectors read; reads artifacts.

    Args:
        scope: that of ``prompt``.
        most: bytes that the arrays of one answer may have.

    Raises:
        RequestError: something is not there, or the model cannot show it, or it is too much.
    """
    parts = tuple(
        _prepared(detector, scope, prompt.plan, token_of, f"{FIELD}[{at}]")
        for at, detector in enumerate(detectors)
    )
    for at, part in enumerate(parts):
        if part.plan is not None and part.plan.bytes > most:
            message = (
                f"{FIELD}[{at}] may have to read {part.plan.bytes} bytes of an answer; this server "
                f"allows {most}. What would help: a smaller max_tokens, or fewer layers."
            )
            raise TooMuch(message, code="trace_too_large", param=f"{FIELD}[{at}]")
    blind = None
    for at, part in enumerate(parts):
        if part.plan is not None and part.detector.compares:
            blind = _blind(prompt, f"{FIELD}[{at}]")
    return Detection(parts, scope, blind)


def _blind(prompt: Prepared, path: str) -> Blind:
    if acts_on_draws(prompt.plan):
        message = (
            f"{path} reads the answer again without its images, which the request's interventions "
            "cannot: one of them acts where a token is drawn."
        )
        raise RequestError(message, code="intervention_conflict", param=path)
    tokens, extents = text_alone(prompt.prompt)
    if not tokens:
        message = f"{path} compares with the prompt without its images, which is empty."
        raise RequestError(message, param=path)
    plan = None if prompt.plan is None else deleted_plan(prompt.plan, extents)
    return Blind(tokens, plan)


def _prepared(
    detector: Detector, scope: Scope, plan: Plan | None, token_of: TokenOf, path: str
) -> Part:
    options = TraceOptions.model_validate(trace_of(detector, scope.model, token_of, path))
    density = _density(detector, scope, path)
    if detector.needs_image and not scope.prompt.images:
        return Part(detector, None, "the prompt has no image")
    try:
        found = resolve(options, scope)
    except RequestError as error:
        if error.code in LACKING:
            why = error.message.partition(": ")[2] or error.message
            return Part(detector, None, why.rstrip("."))
        raise RequestError(error.message, code=error.code, param=path) from None
    try:
        check_plan(found, plan, scope.model)
    except RequestError as error:
        message = f"{path} cannot be read beside the request's interventions: {error.message}"
        raise RequestError(message, code="intervention_conflict", param=path) from None
    return Part(detector, found.prefixed(f"{path}."), None, density)


def _density(detector: Detector, scope: Scope, path: str) -> Density | None:
    digest = getattr(detector, "artifact", None)
    if digest is None:
        return None
    context = Context(scope.model, scope.prompt, scope.artifacts)
    try:
        return context.artifact(digest, (ARTIFACT_KIND,)).tensors
    except InterventionError as error:
        raise error.within(path) from None


def as_json(detector: Detector, scores: Scores) -> dict[str, Any]:
    """A result as an answer has it."""
    return {
        "name": detector.detector_id(),
        "score": None if scores.answer is None else plain(scores.answer),
        "unit": detector.unit,
        "suspect": detector.suspect,
        "threshold": detector.threshold,
        "flagged": detector.flagged(scores.answer),
        "reason": scores.reason,
        "tokens": None if scores.tokens is None else plain(scores.tokens),
        "values": {name: plain(value) for name, value in scores.values.items()},
    }


def plain(value: Any) -> Any:
    """Lists and numbers; null for what is not finite."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _coordinates(array: TraceArray) -> dict[str, Sequence[Any]]:
    return {a.name: a.coordinates for a in array.spec.axes if a.coordinates is not None}
