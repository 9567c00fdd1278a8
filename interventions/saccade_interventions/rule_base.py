"""What a rule says of itself, and nobody else of it: the base of all kinds in rules.py.

Composition, branches, receipts and limits work by these facts alone. Each has a default that suits
a rule that neither concerns key classes nor holds edits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, Self

from msgspec import Struct
from msgspec.structs import replace

from saccade_interventions.edits import Edits, HeadEdit, ScoreEdit, Sites
from saccade_interventions.needs import Needs
from saccade_interventions.phases import Phase

if TYPE_CHECKING:
    from saccade_interventions.plan import Plan

Remap = tuple[tuple[int, int], ...]
"""(class, the class that a key of it gets)."""


class Retags(NamedTuple):
    """Which keys a rule may give another class, and which.

    Keys of the prompt from position ``start`` on, and generated ones if ``generated``. ``required``
    is a class that the rule looks for, whether or not a key can have it.
    """

    remap: Remap
    start: int = 0
    generated: bool = False
    required: int | None = None


class PerHead(NamedTuple):
    """Heads with ``classes`` key classes of their own, 0 but for the initial token's at first."""

    sites: Sites
    classes: int
    initial: int = 0


class Excluded(Exception):
    """Two plans cannot be one: why, with {0} for the plan whose rule says so and {1} for another.

    ``plan`` is the number of that other one, if whoever raises it knows.
    """

    def __init__(self, reason: str, plan: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.plan = plan


class PlanClasses(Protocol):
    """How the key classes of one plan are called in the plan that several are composed to."""

    def whole(self, tag: int, reason: str) -> int:
        """The one class that ``tag`` is.

        Raises:
            Excluded: another plan divides it; with this reason.
        """
        ...

    def score(self, edit: ScoreEdit) -> ScoreEdit:
        """The edit by the classes of the whole."""
        ...

    def remap(self, kind: type[Rule]) -> Remap:
        """What rules of this kind do to the classes of the whole."""
        ...


class Rule(Struct, frozen=True, tag=True, kw_only=True):
    """Plain frozen data: what the engine is to do beyond edits, for one request.

    A plan has at most one rule of a kind. ``source`` is the place of its intervention in the
    request, as in edits.
    """

    source: int = 0

    why_one: ClassVar[str | None] = None
    """Why only one intervention of a request has a rule of the kind; None: they are joined."""

    silent: ClassVar[bool] = False
    """It only says which class keys belong to: without an edit that names the class it does
    nothing, and that it worked shows in the rows of edits."""

    effects: ClassVar[frozenset[str]] = frozenset()
    """Its counters that say it changed something; others say what it looked at or chose."""

    published: ClassVar[Mapping[str, str]] = {}
    """Name in the usage of a response -> its counter."""

    def needs(self) -> Needs:
        """What the engine's core must see to."""
        return Needs()

    def check(self, plan: Plan) -> None:
        """Find a mistake of the method that made the rule and the rest of this plan.

        Raises:
            ValueError: the engine could not follow it.
        """

    # Edits

    @property
    def edits(self) -> tuple[ScoreEdit, ...]:
        """Edits that it holds; which of them run is found while the plan runs."""
        return ()

    @property
    def layers_measured(self) -> tuple[int, ...]:
        """Layers where it finds out what to edit, whatever it finds."""
        return ()

    def later_heads(self, heads: int) -> tuple[HeadEdit, ...]:
        """Edits that it may append to the head edits of its plan, for a model of so many heads."""
        return ()

    def ran(self, counters: Mapping[str, int], finding: Finding | None) -> tuple[Edits, ...]:
        """Edits that it held or made and that ran, by what the engine says it counted and found."""
        return ()

    def rows_without_keys(self, prompt_length: int) -> Mapping[Phase, int]:
        """The first rows of phases that have no key it concerns."""
        return {}

    # Several plans, and plans of branches

    def sourced(self, source: int) -> Self:
        """The rule, and the edits in it, as those of the intervention at this place."""
        return replace(self, source=source)

    def excludes(self, other: Rule) -> str | None:
        """Why no plan has this rule and one of another kind, with {0} for this one's intervention
        and {1} for the other's; None if all is well. One of the two has to say it.
        """
        return None

    def retags(self) -> Retags | None:
        """Which keys may get another class; None if no key does."""
        return None

    def per_head(self) -> PerHead | None:
        """Which heads have key classes of their own (see Needs.per_head_classes)."""
        return None

    def composed(self, classes: PlanClasses) -> Self:
        """The rule with the key classes of the plan that several are composed to.

        Raises:
            Excluded: it cannot be said in them.
        """
        return self

    def joined(self, other: Rule, edited: frozenset[int], others: frozenset[int]) -> Self:
        """The rule that does what two do, for a kind without ``why_one``; both are composed.

        Args:
            edited: layers that the plans edit whose rule this is.
            others: layers that the other's plan edits.

        Raises:
            Excluded: there is none; {0} is this rule's intervention.
        """
        raise NotImplementedError

    def in_branch(self, moved: Callable[[int], int]) -> Self | None:
        """The rule of a branch with the request's edits; None: it is the request's own.

        Args:
            moved: where a position of the prompt is in the branch.
        """
        return None


class Finding(Struct, frozen=True, tag=True, kw_only=True):
    """What a rule found while its plan ran, once; ``source`` is its intervention's place."""

    source: int

    def shown(self) -> dict[str, object]:
        """What the receipt of a response says of it."""
        raise NotImplementedError
