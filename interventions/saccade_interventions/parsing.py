"""From the JSON value of ``interventions`` to methods with checked parameters.

The value is hostile until proved otherwise. The first problem is reported, with its exact path and,
where a name is nearly right, the name that was probably meant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from saccade_interventions.base import Intervention
from saccade_interventions.errors import Code, InterventionError, brief
from saccade_interventions.suggest import unknown
from saccade_interventions.wording import about

FIELD = "interventions"
MOST_ENTRIES = 16
MOST_BYTES = 64 * 1024

CODES = {"extra_forbidden": Code.UNKNOWN_FIELD, "version_mismatch": Code.VERSION_MISMATCH}
"""pydantic's error type -> code; everything else is INVALID_PARAMS."""

RANGE_CODES = {"layers": Code.LAYER_OUT_OF_RANGE, "heads": Code.HEAD_OUT_OF_RANGE}
"""Field -> code of an index below zero, the one bound known without a model."""

Methods = Mapping[str, type[Intervention]]


def parse_entries(value: object, methods: Methods) -> tuple[Intervention, ...]:
    """Check the whole list.

    Raises:
        InterventionError: the first problem; its path starts with ``interventions``.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        message = f"{FIELD} is a list of objects, or null; got {brief(value)}"
        raise InterventionError(Code.INVALID_PARAMS, message, FIELD)
    if len(value) > MOST_ENTRIES:
        message = f"a request has at most {MOST_ENTRIES} interventions; got {len(value)}"
        raise InterventionError(Code.SPEC_TOO_LARGE, message, FIELD)
    _check_size(value)
    return tuple(_entry(entry, f"{FIELD}[{i}]", methods) for i, entry in enumerate(value))


def _check_size(value: list[object]) -> None:
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{FIELD} is not plain JSON: {error}"
        raise InterventionError(Code.INVALID_PARAMS, message, FIELD) from None
    size = len(text.encode(errors="surrogatepass"))
    if size > MOST_BYTES:
        message = f"{FIELD} may be {MOST_BYTES} bytes of JSON; got {size}"
        raise InterventionError(Code.SPEC_TOO_LARGE, message, FIELD)


def _entry(entry: object, path: str, methods: Methods) -> Intervention:
    if not isinstance(entry, dict):
        message = f'an intervention is an object like {{"method": "var"}}; got {brief(entry)}'
        raise InterventionError(Code.INVALID_PARAMS, message, path)
    name = entry.get("method")
    if not isinstance(name, str):
        message = "an intervention names its method, as a text"
        raise InterventionError(Code.INVALID_PARAMS, message, f"{path}.method")
    if name not in methods:
        message = unknown("method", name, methods)
        raise InterventionError(Code.UNKNOWN_METHOD, message, f"{path}.method")
    method = methods[name]
    try:
        return method.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _translate(first, entry, method).within(path) from None


def _translate(
    error: ErrorDetails, entry: Mapping[str, Any], method: type[Intervention]
) -> InterventionError:
    loc = list(error["loc"])
    if "at" in error.get("ctx", {}):
        loc.append(error["ctx"]["at"])
    steps = _steps(loc, entry)
    if error["type"] == "missing" and steps[-1:] != loc[-1:]:
        steps.append(loc[-1])
    code = CODES.get(error["type"], Code.INVALID_PARAMS)
    if code is Code.UNKNOWN_FIELD and len(steps) == 1:
        message = unknown(f"field of {method.method_id()}", str(loc[-1]), method.model_fields)
        return InterventionError(code, message, _path(steps))
    if error["type"] == "greater_than_equal" and loc[0] in RANGE_CODES:
        code = RANGE_CODES[str(loc[0])]
    message = about(_path(steps), error)
    # An error of the whole entry has nothing more to show than the request itself.
    if error["loc"] and error["type"] != "missing":
        message += f"; got {brief(error['input'])}"
    return InterventionError(code, message, _path(steps))


def _steps(loc: Sequence[int | str], entry: Mapping[str, Any]) -> list[int | str]:
    """``loc`` without the tags of unions, which are not part of the request.

    A tag is a step that the value has no place for.
    """
    steps: list[int | str] = []
    value: Any = entry
    for step in loc:
        if isinstance(value, dict) and (step in value or value is entry):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int):
            value = value[step] if step < len(value) else None
        else:
            continue
        steps.append(step)
    return steps


def _path(steps: Sequence[int | str]) -> str:
    """Steps as a JSON path: ``layers[2]``, ``heads["3"][0]``."""
    text = ""
    for step in steps:
        if isinstance(step, str) and step.isidentifier() and len(step) <= 64:
            text += f".{step}" if text else step
        else:
            text += f"[{json.dumps(step) if isinstance(step, int) else json.dumps(step[:64])}]"
    return text
