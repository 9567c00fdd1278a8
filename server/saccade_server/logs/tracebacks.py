"""What a log says of an exception: its type and where it was raised, seldom what it says itself.

The words of an exception are made of what was at hand, which in a server is what clients sent: a
prompt, a header, a key. They are written where nothing of that can be at hand; those of an OSError
that come from the system always are.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from saccade_server.logs.lines import one_line

MOST_ERRORS = 8
MOST_FRAMES = 40
LONGEST_WORDS = 2048

CAUSED = "which caused:"
DURING = "and while it was handled:"


@dataclass(frozen=True)
class Described:
    """``words`` is None where they are withheld; ``lines``: the oldest cause first."""

    kind: str
    words: str | None
    lines: tuple[str, ...]


def describe(error: BaseException, words: bool) -> Described:
    """Describe ``error`` and what led to it; with ``words``, what all of them say."""
    lines: list[str] = []
    chain = list(_chain(error))
    for place, (each, link) in enumerate(reversed(chain)):
        if place:
            lines.append(link)
        lines += _lines(each, words)
    return Described(_kind(error), _words(error, words), tuple(lines))


def _chain(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """An error and what led to it, each with what to say between it and the one before."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen and len(seen) < MOST_ERRORS:
        seen.add(id(at))
        before = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
        yield at, CAUSED if at.__cause__ else DURING
        at = before


def _lines(error: BaseException, words: bool) -> Iterator[str]:
    frames = traceback.extract_tb(error.__traceback__)
    if len(frames) > MOST_FRAMES:
        del frames[MOST_FRAMES // 2 : -MOST_FRAMES // 2]
    for frame in frames:
        yield one_line(f"{frame.filename}:{frame.lineno} in {frame.name}")
        if frame.line:
            yield one_line(f"    {frame.line}")
    said = _words(error, words)
    yield _kind(error) if said is None else f"{_kind(error)}: {said}"
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions[:MOST_ERRORS]:
            yield f"of it: {_kind(each)}"


def _kind(error: BaseException) -> str:
    kind = type(error)
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


def _words(error: BaseException, all_of_them: bool) -> str | None:
    if isinstance(error, OSError) and error.errno is not None and not all_of_them:
        return f"[Errno {error.errno}] {error.strerror}"
    if not all_of_them:
        return None
    try:
        return one_line(str(error), LONGEST_WORDS)
    except Exception:  # a __str__ of its own
        return None
