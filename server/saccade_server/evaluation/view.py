"""An outcome as tables for the terminal, 80 columns and up; the files have every figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from saccade_server.demo.splits import Split
from saccade_server.evaluation.measure import Figure, Measured
from saccade_server.evaluation.report import what_differs
from saccade_server.evaluation.scenes import Outcome
from saccade_server.evaluation.settings import NONE
from saccade_server.evaluation.verdict import verdict

COLUMNS = ("CHAIR_s", "recall of things", "exact", "accuracy")
BEYOND = "*"
"""Marks a change that is beyond chance, in terminals and files that show no bold type."""

PATH = re.compile(r" \(interventions[^)]*\)$")
"""Where in a request's JSON a refusal is about, behind its reason."""


def show(outcome: Outcome, console: Console) -> None:
    """Print verdicts, then the figures that make them split by split, then what was not run."""
    console.print(_verdicts(outcome.measured))
    for split in outcome.measured[0].figures:
        console.print(_figures(outcome.measured, split))
    console.print(
        f"[dim]Percent; in parentheses the change from none, in points; {BEYOND} is beyond "
        "chance.[/dim]"
    )
    if outcome.tuned:
        console.print(_strengths(outcome))
    if outcome.refused:
        rows = [(name, PATH.sub("", reason)) for name, reason in outcome.refused.items()]
        console.print(_table("Not run", ("setting", "why"), rows))


def _verdicts(measured: Sequence[Measured]) -> Table:
    rows = []
    for one in measured:
        if one.setting.name != NONE:
            found = verdict(one)
            places = [*found.better, *found.worse]
            because = "; ".join(
                f"{split}: {name} {_points(one, split, name)}" for split, name in places
            )
            rows.append((one.setting.name, f"{100 * one.changed:.1f} %", found.word, because))
    header = ("setting", "answers changed", "verdict", "by what, in points")
    return _table("Against none, on the same scenes", header, rows)


def _figures(measured: Sequence[Measured], split: Split) -> Table:
    rows = [
        (one.setting.name, *(_cell(one.figures[split].get(name)) for name in COLUMNS))
        for one in measured
    ]
    return _table(split.value, ("setting", *COLUMNS), rows)


def _strengths(outcome: Outcome) -> Table:
    rows: list[tuple[str, str, str]] = []
    if outcome.none is not None:
        rows.append((NONE, "", f"{outcome.none.chair:.1%}, {outcome.none.exact:.1%}"))
    for name, tuned in outcome.tuned.items():
        candidates = [interventions for interventions, _ in tuned.tried]
        tried = "\n".join(
            f"{what_differs(interventions, candidates)}: {trial.chair:.1%}, {trial.exact:.1%}"
            for interventions, trial in tuned.tried
        )
        rows.append((name, what_differs(tuned.setting.interventions, candidates), tried))
    header = ("setting", "chosen", "tried: CHAIR_s where the prior fails, exact")
    return _table("Tuned strengths", header, rows)


def _cell(figure: Figure | None) -> Text:
    if figure is None:
        return Text("")
    value = f"{100 * figure.estimate.value:.1f}"
    if figure.change is None:
        return Text(value)
    beyond = figure.change.beyond_chance
    text = f"{value} ({_signed(figure)}{BEYOND if beyond else ''})"
    return Text(text, style="bold" if beyond else "")


def _points(measured: Measured, split: str, name: str) -> str:
    return _signed(measured.figures[Split(split)][name])


def _signed(figure: Figure) -> str:
    assert figure.change is not None
    return f"{100 * round(figure.change.value, 4):+.1f}"  # as the document has it


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table
