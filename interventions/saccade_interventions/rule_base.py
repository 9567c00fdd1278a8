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
"""Pairs (class, new class): a key of the first gets the second."""


class Retags(NamedTuple):
    """Keys to which a rule may give another class: prompt positions from ``start`` on, and
    generated positions if ``generated``.

    ``required``: a class that the rule looks for, even if no key can have it.
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
    """The reason why two plans cannot be composed: {0} is the plan of the rule that raises it, {1}
    the other plan, whose number is ``plan`` if the rule knows it.
    """

    def __init__(self, reason: str, plan: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.plan = plan


class PlanClasses(Protocol):
    """Translates the key classes of one plan to those of the composed plan."""

    def whole(self, tag: int, reason: str) -> int:
        """The class of the composed plan that is class ``tag`` of this one.

        Raises:
            Excluded: another plan divides the class into several; with ``reason``.
        """
        ...

    def score(self, edit: ScoreEdit) -> ScoreEdit:
        """The edit in classes of the composed plan."""
        ...

    def remap(self, kind: type[Rule]) -> Remap:
        """The remap of all plans' rules of a kind, in classes of the composed plan."""
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
    """True for a rule that only gives keys classes: it has an effect through edits that name such a
    class, and shows in the rows of those edits."""

    chooses: ClassVar[bool] = False
    """True for a rule that chooses among drawn tokens: how likely a token is stays as it was."""

    effects: ClassVar[frozenset[str]] = frozenset()
    """Names of the rule's counters that mean a change; other counters only say what was seen."""

    published: ClassVar[Mapping[str, str]] = {}
    """Name in the usage of a response -> its counter."""

    def needs(self) -> Needs:
        """What the engine's core must see to."""
        return Needs()

    def check(self, plan: Plan) -> None:
        """Find a mistake of the method that made this plan with the rule in it.

        Raises:
            ValueError: the engine could not follow it.
        """

    # Edits

    @property
    def edits(self) -> tuple[ScoreEdit, ...]:
        """Edits that the rule holds; the engine finds out which of them run."""
        return ()

    @property
    def layers_measured(self) -> tuple[int, ...]:
        """Layers in which the rule measures what to edit."""
        return ()

    def later_heads(self, heads: int) -> tuple[HeadEdit, ...]:
        """Head edits that the rule may add behind the plan's own, in a model of ``heads`` heads."""
        return ()

    def ran(self, counters: Mapping[str, int], finding: Finding | None) -> tuple[Edits, ...]:
        """Edits held or made by the rule that ran, by the engine's counters and finding."""
        return ()

    def rows_without_keys(self, prompt_length: int) -> Mapping[Phase, int]:
        """How many rows at the start of each phase have no key that concerns the rule."""
        return {}

    # Several plans, and plans of branches

    def sourced(self, source: int) -> Self:
        """The rule and its edits, as of the intervention at place ``source`` of the request."""
        return replace(self, source=source)

    def excludes(self, other: Rule) -> str | None:
        """Why no plan may have this rule and ``other``, a rule of another kind; None: it may.

        {0} is the intervention of this rule, {1} that of the other. One of two kinds says it.
        """
        return None

    def retags(self) -> Retags | None:
        """Keys that may get another class; None: no key may."""
        return None

    def per_head(self) -> PerHead | None:
        """Which heads have key classes of their own (see Needs.per_head_classes)."""
        return None

    def composed(self, classes: PlanClasses) -> Self:
        """The rule in key classes of the composed plan.

        Raises:
            Excluded: those classes cannot express the rule.
        """
        return self

    def joined(self, other: Rule, edited: frozenset[int], others: frozenset[int]) -> Self:
        """One rule in place of this and ``other``, of the same kind, both in composed classes.

        Only kinds without ``why_one`` have it.

        Args:
            edited: layers edited by the plans that this rule comes from.
            others: layers edited by the plan of ``other``.

        Raises:
            Excluded: no rule does what both do; {0} is the intervention of this one.
        """
        raise NotImplementedError

    def in_branch(self, moved: Callable[[int], int]) -> Self | None:
        """The rule as a branch follows it that has the request's edits; None: no branch follows it.

        Args:
            moved: from a position of the request's prompt to the branch's.
        """
        return None


class Finding(Struct, frozen=True, tag=True, kw_only=True):
    """What a rule found, once, while its plan ran; ``source``: the place of its intervention."""

    source: int

    def shown(self) -> dict[str, object]:
        """What the receipt of a response says of it."""
        raise NotImplementedError
