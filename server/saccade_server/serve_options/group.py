"""What a group of options is to the command: it checks itself, and says what becomes of it."""

from __future__ import annotations

import os
from typing import Any

import typer


class OptionGroup:
    """A base of groups, frozen dataclasses whose fields are options.

    Everything but :meth:`check` and :meth:`settings` is the dataclass's own.
    """

    def check(self) -> None:
        """Refuse what can be refused before torch is imported, which takes seconds.

        Raises:
            ValueError, OSError: the message says which option is wrong and what helps.
        """

    def settings(self) -> dict[str, Any]:
        """Fields of :class:`~saccade_server.api.settings.ApiSettings` that the options decide.

        Raises:
            ValueError: as by :meth:`check`.
        """
        return {}


def listed(options: list[str] | None, variable: str) -> tuple[str, ...]:
    """What was given as options, or else in the environment with commas between."""
    given = options or os.environ.get(variable, "").split(",")
    return () if not options and given == [""] else tuple(given)


def keys(options: list[str] | None, variable: str) -> tuple[str, ...]:
    """Keys of the options, or else of the environment.

    Raises:
        typer.BadParameter: one of them is empty or holds blanks.
    """
    found = listed(options, variable)
    if any(not key or key.split() != [key] for key in found):
        raise typer.BadParameter("a key must not be empty or hold blanks")
    return found
