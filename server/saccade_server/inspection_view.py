"""What ``saccade inspect`` prints: detectors as a table, scores by answer, token and position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

BAR = 24
"""Characters of the longest bar."""

MOST_POSITIONS = 12
SINK_COLUMNS = ("positions", "phi", "lifetime", "kind", "sink_rate")


def listing(kinds: Sequence[Mapping[str, Any]]) -> Table:
    """All detectors."""
    table = Table(box=None)
    for title in ("detector", "suspicious", "needs"):
        table.add_column(title, no_wrap=True)
    table.add_column("what it says", overflow="fold", ratio=1)
    for kind in kinds:
        needs = "image" if kind["needs_image"] else ""
        table.add_row(kind["id"], kind["suspect"], needs, kind["summary"])
    return table


def verdict(found: Mapping[str, Any]) -> Text:
    """The answer's score and what it means: ``svar 0.412 (...): not flagged, below 0.3 is``."""
    text = Text(str(found["name"]), "bold")
    if found["score"] is None:
        return text.append(f": no score, because {found['reason']}", "dim")
    text.append(f" {number(found['score'])}")
    text.append(f" ({found['unit']})", "dim")
    side = "below" if found["suspect"] == "low" else "above"
    if found["threshold"] is None:
        return text.append(f"; no threshold is set, {found['suspect']} is suspicious", "dim")
    line = f"{side} {number(found['threshold'])} is"
    if found["flagged"]:
        return text.append(": flagged", "red").append(f", {line}", "dim")
    return text.append(": not flagged", "green").append(f", {line}", "dim")


def by_token(texts: Sequence[str], scores: Sequence[float | None]) -> Text:
    """A line for each token, with a bar as long as its score is large."""
    names = [repr(text)[1:-1] for text in texts]
    numbers = ["" if score is None else number(score) for score in scores]
    widths = [max(map(len, column), default=0) for column in (names, numbers)]
    most = max((abs(score) for score in scores if score is not None), default=0.0)
    lines = Text()
    for name, shown, score in zip(names, numbers, scores, strict=True):
        length = round(BAR * abs(score) / most) if score and most else 0
        lines.append(f"{name:<{widths[0]}}  {shown:>{widths[1]}}".rstrip())
        lines.append(f"  {'█' * length}" if length else "", "cyan")
        lines.append("\n")
    lines.right_crop(1)
    return lines


def sinks(values: Mapping[str, Any]) -> Iterator[Text | Table]:
    """The prompt's sinks, the longest-lived first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("position", "phi", "layers", "kind", "heads"):
        table.add_column(title, no_wrap=True)
    rows = list(zip(*(values[name] for name in SINK_COLUMNS), strict=True))
    rows.sort(key=lambda row: (-row[2], -row[4], -row[1]))
    for position, phi, lifetime, kind, rate in rows[:MOST_POSITIONS]:
        table.add_row(str(position), number(phi), str(lifetime), kind, f"{rate:.1%}")
    yield table
    if len(rows) > MOST_POSITIONS:
        yield Text(f"and {len(rows) - MOST_POSITIONS} more, which --json lists", "dim")


def shown(found: Mapping[str, Any], texts: Sequence[str]) -> Iterator[Text | Table]:
    """All that is printed of one detector's result."""
    yield verdict(found)
    if found["tokens"] is not None:
        yield by_token(texts, found["tokens"])
    elif found["values"] and found["name"] == "sinks":
        yield from sinks(found["values"])
    else:
        numbers = {name: v for name, v in found["values"].items() if isinstance(v, float)}
        if numbers:
            yield Text(", ".join(f"{name} {number(v)}" for name, v in numbers.items()))


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"
