"""What the rules of a plan need of the engine, whatever they do: data that its core reads.

The core schedules, tags pages and forms groups by these alone; it knows no rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from saccade_interventions.phases import Phase


class Noise(Struct, frozen=True):
    """Diffusion noise on normalised pixels x: sqrt(kept) x + sqrt(1 - kept) n, n ~ N(0, 1)."""

    kept: float
    seed: int


class Branch(Struct, frozen=True):
    """A sequence beside the request's own: another view of its prompt.

    ``images``: the same, deleted (their tokens too), with their keys hidden from attention, or with
    ``noise``. ``edited``: the request's edits act in the branch as well, as far as their keys are
    left; otherwise it runs plain. ``measures``: it ends with the last prompt row; otherwise it
    follows the request's tokens. ``source``: the intervention that needs it.
    """

    images: Literal["same", "deleted", "hidden", "noised"]
    noise: Noise | None = None
    edited: bool = False
    measures: bool = False
    source: int = 0


class PageExtra(Struct, frozen=True):
    """What is kept beside the keys and values of a page, in every page that a sequence may find.

    ``key`` says what it depends on. Pages with generated rows have it only if ``generated``.
    ``scored``: dimensions of the residual in which tokens are scored; a token has one score.
    """

    key: str
    generated: bool = False
    scored: tuple[int, ...] = ()


class Needs(Struct, frozen=True, kw_only=True):
    """What a rule needs, or all rules of a plan together.

    - ``whole_prompt``: all prompt rows, of branches too, in one step from the first token on.
    - ``single_rows``: generated rows computed one at a time, again after preemption too: rows of
      one chunk share the key classes of their sequence, and the rule changes them row by row.
    - ``token_first``: the host knows a token before the next step is launched.
    - ``draws``: the tokens of an answer are drawn, each behind its own row: it acts there.
    - ``candidates``: how many of the likeliest tokens one may be taken from in place of the drawn
      one; 1: the drawn one stays.
    - ``last_row_twice``: the last prompt row runs again, under a plan that its first run decides.
    - ``own_pages``: rows of these phases follow what is measured for this sequence alone, so that
      no page from the first such row on is shared.
    - ``own_programs``: phases whose control rows are completed by measuring, and are nobody else's,
      each with the layers whose heads it may edit.
    - ``per_head_classes``: phases whose rows follow key classes of single heads.
    - ``page_extra``: what shared pages must bring along.
    - ``branches``: sequences beside the request's own.
    """

    whole_prompt: bool = False
    single_rows: bool = False
    token_first: bool = False
    draws: bool = False
    candidates: int = 1
    last_row_twice: bool = False
    own_pages: frozenset[Phase] = frozenset()
    own_programs: tuple[tuple[Phase, tuple[int, ...]], ...] = ()
    per_head_classes: frozenset[Phase] = frozenset()
    page_extra: PageExtra | None = None
    branches: tuple[Branch, ...] = ()


NOTHING = Needs()


def merged(needs: Iterable[Needs]) -> Needs:
    """The needs of all rules of a plan; branches in order. At most one rule has a page extra."""
    every = tuple(needs)
    if not every:
        return NOTHING
    return Needs(
        whole_prompt=any(some.whole_prompt for some in every),
        single_rows=any(some.single_rows for some in every),
        token_first=any(some.token_first for some in every),
        draws=any(some.draws for some in every),
        candidates=max(some.candidates for some in every),
        last_row_twice=any(some.last_row_twice for some in every),
        own_pages=frozenset[Phase]().union(*(some.own_pages for some in every)),
        own_programs=tuple(own for some in every for own in some.own_programs),
        per_head_classes=frozenset[Phase]().union(*(some.per_head_classes for some in every)),
        page_extra=next((some.page_extra for some in every if some.page_extra), None),
        branches=tuple(branch for some in every for branch in some.branches),
    )
