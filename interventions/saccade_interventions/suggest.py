"""What a name that nobody knows was probably meant to be.

The distance is the optimal string alignment of Damerau and Levenshtein: letters inserted, removed,
replaced, and neighbours swapped count one each. Case counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from rapidfuzz import process
from rapidfuzz.distance import OSA

from saccade_interventions.errors import brief

LONGEST = 64
"""Letters of a name that are looked at; it may come from a stranger."""

MOST = 3
BEGINNING = 3
"""Letters that a beginning of a name has at least."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names at the least distance from ``name``, in order.

    Returns:
        At most :data:`MOST`; none if a third of the letters or more would have to change, though
        of two or three letters one may. Where none is so near, the known names that begin with
        ``name``.
    """
    given, names = name[:LONGEST].lower(), sorted(known)
    farthest = max(len(given) > 1, (len(given) - 1) // 3)
    found = process.extract(
        given, names, scorer=OSA.distance, processor=str.lower, score_cutoff=farthest, limit=None
    )
    least = min((distance for _, distance, _ in found), default=0)
    near = sorted(other for other, distance, _ in found if distance == least)
    if not near and len(given) >= BEGINNING:
        near = [other for other in names if other.lower().startswith(given)]
    return near[:MOST]


def hint(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """``did you mean "that"?``, or what to say where nothing is near."""
    near = nearest(name, known)
    return f"did you mean {' or '.join(map(brief, near))}?" if near else otherwise


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A message about an unknown name: what was probably meant, or else all that there are."""
    names = sorted(known)
    return f"unknown {what} {brief(name)}; {hint(name, names, 'known: ' + ', '.join(names))}"
