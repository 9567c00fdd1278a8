"""The text of an answer without the white space next to its calls."""

from __future__ import annotations


class Prose:
    """Text in pieces; white space waits until it is known what comes behind it.

    What stands between two texts stays, calls between them or not; what is between a text, or the
    beginning or the end, and a call is dropped.
    """

    def __init__(self) -> None:
        self._space = ""
        self._new = ""
        self._has_said = False
        self._beside = False  # a call came since the last text

    def add(self, text: str) -> None:
        """Go on with ``text``, possibly empty."""
        whole = self._space + text
        said = whole.rstrip()
        self._space = whole[len(said) :]
        if said:
            self._new += said.lstrip() if self._beside and not self._has_said else said
            self._has_said, self._beside = True, False

    def interrupted(self) -> None:
        """A call comes."""
        self._beside = True

    def end(self) -> None:
        """Nothing comes any more."""
        if not self._beside:
            self._new += self._space
        self._space = ""

    def take(self) -> str:
        """What is new since this was called last."""
        new, self._new = self._new, ""
        return new
