"""What is compared: named lists of interventions, from a file or from the server's own listing.

A file is TOML or JSON:

    [[settings]]
    name = "var, strong"
    interventions = [{method = "var", move_fraction = 0.9}]
    grid = [                                   # only read with --tune; whole lists, weakest first
        [{method = "var", move_fraction = 0.6}],
        [{method = "var", move_fraction = 0.9}],
    ]

Tuning chooses from the grid alone: a setting that is to be among its own candidates stands there.
``{question}`` in a string stands for the text of the question that is being asked.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade_interventions.registry import Registry
from saccade_interventions.suggest import hint, unknown
from saccade_server.evaluation.errors import EvaluationError

Interventions = tuple[dict[str, Any], ...]

NONE = "none"
"""The setting without interventions, which every other one is compared with."""

QUESTION = "{question}"
FIELDS = frozenset({"name", "interventions", "grid"})


@dataclass(frozen=True)
class Setting:
    """One column of the comparison. ``grid`` holds what tuning may choose from, weakest first."""

    name: str
    interventions: Interventions = ()
    grid: tuple[Interventions, ...] = ()

    def entries(self, question: str) -> list[dict[str, Any]]:
        """What a request with this question sends."""
        return [_filled(entry, question) for entry in self.interventions]


def read_settings(path: Path) -> list[Setting]:
    """The settings of a file, in order.

    Raises:
        EvaluationError: there is no such file, or it says something else; with the place.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: {error}") from None
    listed = document.get("settings") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not listed:
        raise EvaluationError(f"{path}: holds no list called settings")
    settings = [_setting(entry, f"{path}: settings[{at}]") for at, entry in enumerate(listed)]
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1 or name == NONE:
            raise EvaluationError(f"{path}: a setting called {name!r} is there already")
    return settings


def check_names(names: Sequence[str], path: Path | None) -> None:
    """Refuse names that are neither of a setting in the file, nor, without a file, of a method.

    Raises:
        EvaluationError: one is unknown, or the file is not one of settings.
    """
    if path is not None:
        known = [setting.name for setting in read_settings(path)]
        what = f"setting of {path}"
    else:
        known, what = list(Registry.discover().methods), "method"
    for name in names:
        if name not in known:
            raise EvaluationError(f"--method: {unknown(what, name, known)}")


def listed_settings(methods: list[dict[str, Any]]) -> tuple[list[Setting], dict[str, str]]:
    """Every method of a server's listing, at its defaults.

    Returns:
        The settings, and for each method that the model does not support, why not.
    """
    missing = {m["id"]: str(m["reason"]) for m in methods if not m["supported"]}
    registry = Registry.discover()
    found = [default_setting(m["id"], registry) for m in methods if m["supported"]]
    return found, missing


def default_setting(method: str, registry: Registry) -> Setting:
    """A method at its defaults, with its grid of strengths if it is installed here and has one."""
    kind = registry.methods.get(method)
    grid = () if kind is None else kind.grid
    strengths = tuple(({"method": method, **fields},) for fields in grid)
    return Setting(method, ({"method": method},), strengths)


def _setting(entry: Any, where: str) -> Setting:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise EvaluationError(f"{where}: a setting is a table with a name")
    if others := sorted(entry.keys() - FIELDS):
        meant = hint(others[0], FIELDS, f"known: {', '.join(sorted(FIELDS))}")
        raise EvaluationError(f"{where}: unknown field {others[0]!r}; {meant}")
    grid = entry.get("grid", [])
    if not isinstance(grid, list):
        raise EvaluationError(f"{where}.grid: a list of lists of interventions")
    return Setting(
        entry["name"],
        _interventions(entry.get("interventions", []), f"{where}.interventions"),
        tuple(_interventions(item, f"{where}.grid[{at}]") for at, item in enumerate(grid)),
    )


def _interventions(value: Any, where: str) -> Interventions:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise EvaluationError(f"{where}: a list of tables, each with a method")
    return tuple(value)


def _filled(value: Any, question: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, question) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, question) for item in value]
    return value.replace(QUESTION, question) if isinstance(value, str) else value
