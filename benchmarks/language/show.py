"""A short table of settings, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 160


def table(settings: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """One row a setting; ``columns`` are titles and paths to estimates, as ``tone.mean``."""
    shown = Table("", *columns, box=None)
    for name, found in settings.items():
        shown.add_row(name, *(_cell(_at(found, path)) for path in columns.values()))
    Console(width=WIDTH).print(shown)


def _at(found: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    for step in path.split("."):
        found = found[step]
    return found


def _cell(estimate: Mapping[str, Any]) -> str:
    interval = f"[{estimate['low']:.2f}, {estimate['high']:.2f}]"
    if "sign_p" not in estimate:
        return rf"{estimate['value']:.2f} \{interval}"
    mark = "*" if estimate["sign_p"] < 0.05 and estimate["low"] * estimate["high"] > 0 else ""
    return rf"{estimate['value']:+.2f}{mark} \{interval}"
