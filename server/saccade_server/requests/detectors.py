"""``detectors`` of a request: from JSON to checked entries, or what is wrong and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from saccade_interventions.errors import InterventionError, brief
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.suggest import unknown
from saccade_interventions.wording import about
from saccade_server.detectors.base import Detector, TokenOf
from saccade_server.detectors.registry import DETECTORS
from saccade_server.requests.errors import RequestError

FIELD = "detectors"
MOST_DETECTORS = 8


def parse_detectors(value: object) -> tuple[Detector, ...]:
    """Check the whole list; null is none.

    Raises:
        RequestError: the first problem; its path starts with ``detectors``.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        message = f'{FIELD} is a list of objects like {{"name": "svar"}}; got {brief(value)}'
        raise _invalid(message, FIELD)
    if len(value) > MOST_DETECTORS:
        message = f"a request has at most {MOST_DETECTORS} detectors; got {len(value)}"
        raise _invalid(message, FIELD)
    return tuple(_entry(entry, f"{FIELD}[{at}]") for at, entry in enumerate(value))


def trace_of(detector: Detector, model: ModelFacts, token_of: TokenOf, path: str) -> dict[str, Any]:
    """The ``trace`` that a detector reads on this model.

    Raises:
        RequestError: the model does not have what it names, or takes no images.
    """
    if detector.needs_image and not model.accepts_images:
        raise _invalid(f"{detector.detector_id()} looks at images; the model takes none", path)
    try:
        return detector.trace(model, token_of)
    except InterventionError as error:
        within = error.within(path)
        raise _invalid(within.message, within.param) from None


def _entry(entry: object, path: str) -> Detector:
    if not isinstance(entry, dict):
        message = f'a detector is an object like {{"name": "svar"}}; got {brief(entry)}'
        raise _invalid(message, path)
    name = entry.get("name")
    if not isinstance(name, str):
        raise _invalid("a detector has a name, as a text", f"{path}.name")
    if name not in DETECTORS:
        message = unknown("detector", name, DETECTORS)
        raise RequestError(message, code="unknown_detector", param=f"{path}.name")
    kind = DETECTORS[name]
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = path + _steps([*first["loc"], *_at(first.get("ctx"))])
        if first["type"] == "extra_forbidden":
            field = str(first["loc"][-1])
            message = unknown(f"field of {name}", field, kind.model_fields)
        else:
            message = about(where, first)
            message += f"; got {brief(first['input'])}" if first["loc"] else ""
        raise _invalid(message, where) from None


def _at(context: dict[str, Any] | None) -> Sequence[str]:
    return (context["at"],) if context and "at" in context else ()


def _steps(loc: Sequence[int | str]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step[:64]}" for step in loc)


def _invalid(message: str, path: str) -> RequestError:
    return RequestError(message, code="invalid_detector", param=path)
