"""``interventions_applied`` for a reader: a line for each entry. The whole is for ``--json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

COUNTED = {"contrasted": "contrasted tokens"}
"""Counters whose name is no noun."""


def receipt_lines(answer: Mapping[str, Any]) -> list[str]:
    """What really ran for an answer, an intervention a line; none without interventions."""
    entries = answer.get("interventions_applied") or []
    return [f"{entry['method']} {receipt_line(entry)}" for entry in entries]


def receipt_line(entry: Mapping[str, Any]) -> str:
    """One entry without its method: ``applied: 24 rows, 18 heads of layers 2-4``."""
    parts = [_rows(entry), _moved(entry["edits"]), *_counters(entry), _filled_in(entry)]
    parts = [part for part in parts if part]
    return str(entry["status"]) + (": " + ", ".join(parts) if parts else "")


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, runs of them shortened: 2-4, 7."""
    runs = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    found = [[number for _, number in run] for _, run in runs]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found)


def _rows(entry: Mapping[str, Any]) -> str:
    rows = entry["rows"]
    computed = rows["prompt"] + rows["generated"]
    if not computed and not rows["cached"]:
        return ""
    cached = f" and {rows['cached']} cached" if rows["cached"] else ""
    heads = f"{_count(entry['heads'], 'head')} of " if entry["heads"] else ""
    layers = entry["layers"]
    where = f"{heads}{'layers' if len(layers) > 1 else 'layer'} {ranges(layers)}" if layers else ""
    return f"{_count(computed, 'row')}{cached}" + (f", {where}" if where else "")


def _moved(edits: Mapping[str, Any]) -> str:
    """Of mass edits alone: the (row, head) pairs where they changed attention."""
    if edits["moved"] is None:
        return ""
    return f"moved {edits['moved']} of {edits['evaluated']}"


def _counters(entry: Mapping[str, Any]) -> list[str]:
    return [f"{value} {COUNTED.get(name, name)}" for name, value in entry["counters"].items()]


def _filled_in(entry: Mapping[str, Any]) -> str:
    """What the artifact said because the entry did not; layers stand beside the rows."""
    filled = {name: value for name, value in entry["filled_in"].items() if name != "layers"}
    values = [f"{name} {json.dumps(value)}" for name, value in filled.items()]
    return f"{', '.join(values)} from the artifact" if values else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
