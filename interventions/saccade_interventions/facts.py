"""What a rule says of itself, and nobody else of it: the base of all kinds in rules.py."""

from __future__ import annotations

from typing import ClassVar, Self

from msgspec import Struct
from msgspec.structs import replace

from saccade_interventions.needs import Needs


class Rule(Struct, frozen=True, tag=True, kw_only=True):
    """Plain frozen data: what the engine is to do beyond edits, for one request.

    A plan has at most one rule of a kind. ``source`` is the place of its intervention in the
    request, as in edits.
    """

    source: int = 0

    silent: ClassVar[bool] = False
    """It only says which class keys belong to: without an edit that names the class it does
    nothing, and that it worked shows in the rows of edits."""

    def needs(self) -> Needs:
        """What the engine's core must see to."""
        return Needs()

    def sourced(self, source: int) -> Self:
        """The rule, and the edits in it, as those of the intervention at this place."""
        return replace(self, source=source)
