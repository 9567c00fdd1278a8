"""Stop strings: cut the text where one ends first, and never show the start of one too early."""

from __future__ import annotations

from collections.abc import Mapping


class StopStrings:
    """Feeds text through; holds back what could still become a stop string.

    The result does not depend on how the text is cut into pieces: of several matches, the one that
    is complete first wins, and of those the longest.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.stopped = False
        self._held = ""
        self._passed = 0  # characters of what is held in which no stop string may end

    def push(self, text: str) -> str:
        """Take the next piece; return what may be shown."""
        if not self.stops or self.stopped:
            return "" if self.stopped else text
        text = self._held + text
        match = self._first(text)
        if match is not None:
            self.stopped = True
            self._held = ""
            return text[:match]
        return self._hold(text)

    def skip(self, text: str) -> str:
        """Take a piece in which no stop string may end; one that begins in it may end later."""
        text = self._held + text
        self._passed = len(text)
        return self._hold(text)

    def _hold(self, text: str) -> str:
        """Keep what could become a stop string; the rest may be shown."""
        keep = max((overlap(text, stop) for stop in self.stops), default=0)
        shown = len(text) - keep
        self._held = text[shown:]
        self._passed = max(self._passed - shown, 0)
        return text[:shown]

    def flush(self) -> str:
        """The text has ended: what was held back was no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> int | None:
        found = [
            (at + len(stop), at)
            for stop in self.stops
            if (at := text.find(stop, max(self._passed - len(stop) + 1, 0))) >= 0
        ]
        return min(found)[1] if found else None


def also_as(stops: tuple[str, ...], written: Mapping[str, str]) -> tuple[str, ...]:
    """The stop strings, and those with texts in them as they are written in this answer."""
    others = list(stops)
    for text, instead in written.items():
        others = [stop.replace(text, instead) if text else stop for stop in others]
    return tuple(dict.fromkeys([*stops, *others]))


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``, short of all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
