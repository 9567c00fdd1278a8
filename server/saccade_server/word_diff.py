"""Two answers, the second with the words marked that the first has not, and the reverse.

The marks are those of ``git diff --word-diff``, so that they show without colours too.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from rich.text import Text

WORD = re.compile(r"\s*(?:\w+|[^\w\s])")
"""A word or a mark, with the space before it."""

REMOVED = ("[-", "-]", "red")
ADDED = ("{+", "+}", "green")


def word_diff(first: str, second: str) -> Text:
    """``second`` as it differs from ``first``: ``a blue [-square-]{+cross+}``."""
    old, new = WORD.findall(first), WORD.findall(second)
    text = Text()
    for what, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what == "equal":
            text.append("".join(new[j1:j2]))
            continue
        text.append_text(_marked("".join(old[i1:i2]), REMOVED, space=True))
        text.append_text(_marked("".join(new[j1:j2]), ADDED, space=i1 == i2))
    return text


def _marked(words: str, marks: tuple[str, str, str], *, space: bool) -> Text:
    """The words between marks; ``space``: with the space before them, which stays outside."""
    if not words:
        return Text()
    opening, closing, style = marks
    bare = words.lstrip()
    gap = words[: len(words) - len(bare)] if space else ""
    return Text(gap).append(f"{opening}{bare}{closing}", style)
