"""What ``saccade demo`` prints of its document: the picture where there are colours, two tables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich import box
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from saccade_server.demo.effects import PLAIN, Effect, Share, effects
from saccade_server.receipt_line import receipt_line
from saccade_server.word_diff import word_diff

PICTURE_COLUMNS = 32
TITLES = {PLAIN: "plain"}
LEGEND = "[-words-] are only in the plain answer, {+words+} only in this one."
SOURCE = (
    "In brackets the 95% interval of the change from plain, in points. From {}; other kinds of "
    "image and other methods are in docs/evaluation.md."
)


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print the document for a reader, as wide as the console is."""
    if console.color_system in ("truecolor", "256") and not console.no_color:
        console.print(picture(Path(document["image"]), PICTURE_COLUMNS))
    console.print(Text(_near(document["image"])), soft_wrap=True)
    console.print(Text(f"Question:  {document['question']}"))
    console.print(Text(f"Reference: {document['reference']}\n"))
    console.print(answers_table(document))
    console.print(Text(LEGEND, "dim"))
    measured = document["measured"]
    console.print(Text(f"\nThe same on {measured['captions']} held-out images of this kind:\n"))
    console.print(effects_table(effects(measured)))
    console.print(Text(SOURCE.format(measured["source"]), "dim"))


def answers_table(document: Mapping[str, Any]) -> Table:
    """A row for each answer: its words against the plain ones, its receipt, right or wrong."""
    table = _table("", "answer", "")
    plain = document["answers"][0]["text"]
    for answer in document["answers"]:
        text = Text(plain)
        if answer["name"] != PLAIN:
            same = answer["text"] == plain
            text = Text("the same") if same else word_diff(plain, answer["text"])
        for entry in answer["interventions_applied"]:
            text.append(f"\n{receipt_line(entry)}", "dim")
        verdict = Text("right", "green") if answer["right"] else Text("wrong", "red")
        table.add_row(_title(answer["name"]), text, verdict)
    return table


def effects_table(found: Mapping[str, Effect]) -> Table:
    """A row for each setting: what its captions do on held-out images."""
    table = _table("", "name an absent thing", "exactly right", "verdict")
    for name, effect in found.items():
        verdict = "" if name == PLAIN else effect.verdict
        table.add_row(_title(name), _share(effect.absent), _share(effect.exact), verdict)
    return table


def picture(path: Path, columns: int) -> Text:
    """An image as coloured half blocks, two pixels a character; square ones stay square."""
    with Image.open(path) as opened:
        height = max(columns * opened.height // opened.width // 2 * 2, 2)
        scaled = opened.convert("RGB").resize((columns, height), Image.Resampling.BOX)
    pixels = np.asarray(scaled)  # uint8 [height, columns, 3]
    text = Text()
    for y in range(0, height, 2):
        for x in range(columns):
            upper, lower = (Color.from_rgb(*pixels[y + below, x]) for below in (0, 1))
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(titles[0], no_wrap=True)
    for title in titles[1:]:
        table.add_column(title, overflow="fold")
    return table


def _title(name: str) -> Text:
    return Text(TITLES.get(name, name), "bold")


def _share(share: Share) -> str:
    if share.change is None:
        return f"{share.value:.1%}"
    points = [100 * number for number in (share.change.value, share.change.low, share.change.high)]
    return "{:.1%} {:+.1f} [{:+.0f}, {:+.0f}]".format(share.value, *points)


def _near(path: str) -> str:
    """Relative to the working folder if it is below it."""
    here = os.path.relpath(path)
    return path if here.startswith(os.pardir) else here
