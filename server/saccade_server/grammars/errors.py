"""What can be wrong with a grammar: told to whoever sent it, or to whoever's answer it failed."""

from __future__ import annotations

from typing import TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""Keys and indexes from what a function was given down to what is wrong."""


class GrammarError(ValueError):
    """Something that cannot be made a grammar: a sentence, and where.

    ``path`` begins at what the raising function was given.
    """

    def __init__(self, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def below(self, *path: str | int) -> GrammarError:
        """The same error, seen from further up."""
        return GrammarError(self.message, (*path, *self.path))


class GrammarFailed(Exception):
    """A grammar that cannot go on in an answer; the message is a sentence."""
