"""From the bytes of a body to a checked model, or a 400 that names the field.

Stricter than JSON libraries are by default: duplicate keys are refused, because two parsers that
read the same request differently are how a proxy and a server come to disagree about
``interventions``; so are NaN and Infinity, numbers that overflow to infinity, lone surrogates and
absurd nesting. A byte order mark in front, which some clients write, is no part of the text.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from saccade_interventions.wording import about
from saccade_server.api.body.limits import check_lengths
from saccade_server.api.body.unsupported import refuse_misplaced
from saccade_server.api.deadline import current_deadline
from saccade_server.api.errors import BadRequest, bounded
from saccade_server.api.services import Services

DEEPEST = 64
MOST_ERRORS = 10
OFF_LOOP_BYTES = 64 * 1024

Model = TypeVar("Model", bound=BaseModel)


async def read_body(services: Services, request: Request, model: type[Model]) -> Model:
    """Read, parse and check the body of a request."""
    body = await request.body()
    work = partial(parse, body, model, partial(check_lengths, services))
    if len(body) <= OFF_LOOP_BYTES:
        return work()
    async with current_deadline.get().kept():
        return await services.in_worker(work)


def parse(
    body: bytes, model: type[Model], check: Callable[[dict[str, Any]], None] | None = None
) -> Model:
    """Check ``body`` against ``model``, after what ``check`` refuses."""
    value = load(body)
    if not isinstance(value, dict):
        raise _invalid("The body must be a JSON object.")
    if check is not None:
        check(value)
    refuse_misplaced(value)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise refusal(error, value) from None


def load(body: bytes) -> Any:
    """Parse strict JSON."""
    try:
        value = json.loads(
            body.removeprefix(codecs.BOM_UTF8).decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except UnicodeDecodeError:
        raise _invalid("The body is not valid UTF-8.") from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        message = f"The body is not valid JSON: {error.msg} at character {error.pos}."
        raise _invalid(message) from None
    except ValueError:
        # CPython refuses to convert integers of thousands of digits.
        raise _invalid("The body holds a number that is too long.") from None
    # Most bodies cannot hold what is looked for: no escapes, and too few lists and objects.
    if b"\\u" in body or body.count(b"{") + body.count(b"[") > DEEPEST:
        _check(value)
    return value


def refusal(error: ValidationError, value: Any) -> BadRequest:
    """Say what is wrong with ``value``: bounded, and without echoing it."""
    found = error.errors(include_url=False, include_input=False)
    lines = [bounded(about(_path(item, value), item)) for item in found[:MOST_ERRORS]]
    if len(found) > MOST_ERRORS:
        lines.append(f"and {len(found) - MOST_ERRORS} more")
    first = found[0]
    return BadRequest(
        "; ".join(lines) + ".",
        code="missing_field" if first["type"] == "missing" else "invalid_value",
        param=_path(first, value) or None,
    )


def _path(item: ErrorDetails, value: Any) -> str:
    return json_path(item["loc"], value, missing=item["type"] == "missing")


def json_path(loc: Sequence[int | str], value: Any, *, missing: bool = False) -> str:
    """Write a location as ``messages[0].content``.

    Pydantic mixes the names of union members into a location; only what leads through ``value``
    is part of the path. The last step of a missing field leads nowhere yet belongs to it.
    """
    path = ""
    for position, step in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(step, int) and isinstance(value, list) and 0 <= step < len(value):
            path, value = f"{path}[{step}]", value[step]
        elif isinstance(step, str) and isinstance(value, dict) and (step in value):
            path, value = f"{path}.{step}", value[step]
        elif last and missing:
            path = f"{path}.{step}"
    return path.removeprefix(".")


def _check(value: Any) -> None:
    """Walk without recursion: depth, and text that UTF-8 cannot carry."""
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if depth > DEEPEST:
            raise _too_deep()
        if isinstance(item, str):
            _encodable(item)
        elif isinstance(item, list):
            stack.extend((child, depth + 1) for child in item)
        elif isinstance(item, dict):
            for key, child in item.items():
                _encodable(key)
                stack.append((child, depth + 1))


def _encodable(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _invalid("The body holds a lone surrogate, which is not text.") from None


def _no_constant(name: str) -> NoReturn:
    raise _invalid(f"{name} is not JSON.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _invalid("The body holds a number that is too large.")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _invalid(f"The key {json.dumps(bounded(twice))} is given twice.")
    return value


def _too_deep() -> BadRequest:
    return _invalid(f"The body is nested deeper than {DEEPEST} levels.")


def _invalid(message: str) -> BadRequest:
    return BadRequest(message, code="invalid_json")
