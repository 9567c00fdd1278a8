"""Commands whose parameters are groups of options: frozen dataclasses, an option a field.

What belongs together is declared, explained and checked in one file, and a command with seventy
options stays readable.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """``command`` for typer: each parameter that is a dataclass becomes its fields, an option each.

    A field that is a dataclass becomes its own fields in turn.

    Raises:
        TypeError: two groups have an option of one name, or a field has no default.
    """
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in groups:
            parameters += _options(groups[name])
        else:
            named = parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            parameters.append(named)
    names = [parameter.name for parameter in parameters]
    if len(set(names)) != len(names):
        raise TypeError(f"options of one name: {sorted(n for n in names if names.count(n) > 1)}")

    @wraps(command)
    def run(**given: Any) -> Any:
        for name, group in groups.items():
            given[name] = _made(group, given)
        return command(**given)

    flat = signature.replace(parameters=parameters, return_annotation=hints.get("return"))
    run.__signature__ = flat  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _made(group: type, given: dict[str, Any]) -> Any:
    """An instance of ``group``, of options that are taken out of ``given``."""
    hints = get_type_hints(group)
    return group(
        **{
            field.name: _made(hints[field.name], given)
            if is_dataclass(hints[field.name])
            else given.pop(field.name)
            for field in fields(group)
        }
    )


def _options(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    found: list[inspect.Parameter] = []
    for field in fields(group):
        hint = hints[field.name]
        if is_dataclass(hint):
            found += _options(hint)  # type: ignore[arg-type]
            continue
        kind = inspect.Parameter.KEYWORD_ONLY
        default = _default(group, field)
        found.append(inspect.Parameter(field.name, kind, default=default, annotation=hint))
    return found


def _default(group: type, field: Field[Any]) -> Any:
    if field.default is MISSING:
        raise TypeError(f"{group.__name__}.{field.name} has no default")
    return field.default
