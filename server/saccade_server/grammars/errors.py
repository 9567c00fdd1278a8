"""What can be wrong with a grammar: told to whoever sent it, or to whoever's answer it failed."""

from __future__ import annotations

from typing import Final, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""Keys and indexes from what a function was given down to what is wrong."""

INVALID: Final = "invalid_grammar"
UNSUPPORTED: Final = "unsupported_grammar"
"""The code of what is right, and cannot be honoured."""
TOO_LARGE: Final = "grammar_too_large"


class GrammarError(ValueError):
    """Something that cannot be made a grammar: a sentence, and where.

    ``path`` begins at what the raising function was given; ``code`` is for programs.
    """

    def __init__(self, message: str, path: Path = (), code: str = INVALID) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.code = code

    def below(self, *path: str | int) -> GrammarError:
        """The same error, seen from further up."""
        return GrammarError(self.message, (*path, *self.path), self.code)


class GrammarFailed(Exception):
    """A grammar that cannot go on in an answer; the message is a sentence."""
