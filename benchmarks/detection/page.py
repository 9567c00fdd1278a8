"""The measured table of docs/detectors.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

NAMES = {
    "svar": "`svar`",
    "vhd": "`vhd` (T-VHD)",
    "vas": "`vas`, behind a system prompt",
    "anatomy_of_a_lie": "`anatomy_of_a_lie`, surprisal",
    "evidence": "its H_Evi alone",
    "conflict": "its S_Conf alone, low",
    "decision": "its H_Ans alone",
    "sinks": "`sinks`, in the image",
    "waad": "`waad`",
    "fai": "`fai`, near 2",
    "likelihood": "no detector: mean log-probability",
}
TASKS = {"captions": "captions", "mentions": "things named", "questions": "companion questions"}


def table(document: Mapping[str, Any]) -> str:
    """A row a measure: areas with intervals, and the rates of its threshold on captions."""
    tasks = document["tasks"]
    titles = ["score", *TASKS.values(), "flags wrong mentions", "flags right ones"]
    rows = [titles, ["---"] * len(titles)]
    for name, title in NAMES.items():
        cells = [_area(tasks[task]["measures"].get(name)) for task in TASKS]
        line = (tasks["mentions"]["measures"].get(name) or {}).get("threshold")
        shares = ("true_positive_rate", "false_positive_rate")
        rows.append([title, *cells, *(_share(line, share) for share in shares)])
    counts = [f"{tasks[task]['wrong']} of {tasks[task]['all']} wrong" for task in TASKS]
    rows.append(["*answers*", *counts, "", ""])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def written(page: str, document: Mapping[str, Any]) -> str:
    """The page with the table of this document."""
    between = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.S)
    return between.sub(lambda _: f"{BEGIN}\n\n{table(document)}\n\n{END}", page)


def write_page(path: Path, document: Mapping[str, Any]) -> None:
    """Put the table into the page."""
    path.write_text(written(path.read_text(encoding="utf-8"), document), encoding="utf-8")


def _area(measure: Mapping[str, Any] | None) -> str:
    if measure is None:
        return "–"
    text = f"{measure['value']:.2f} [{measure['low']:.2f}, {measure['high']:.2f}]"
    return f"**{text}**" if measure["low"] > 0.5 else text


def _share(line: Mapping[str, Any] | None, share: str) -> str:
    return "–" if line is None else f"{line[share]:.0%}"
