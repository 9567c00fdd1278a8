"""Profiles: bundles of interventions that an operator gives a name.

They are read from a TOML file before the server starts, and a profile that could not be served
stops it:

    [profiles.grounded]
    description = "Less is made up about images."
    interventions = [{ method = "var", move_fraction = 0.6 }, { method = "pai" }]
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade_interventions.base import Intervention
from saccade_interventions.errors import InterventionError
from saccade_interventions.registry import Registry
from saccade_interventions.suggest import hint, unknown
from saccade_server.requests.errors import RequestError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
FIELDS = frozenset({"description", "interventions"})
LONGEST_DESCRIPTION = 1000
ENTRY = re.compile(r"interventions\[(\d+)\]")


class ProfileError(ValueError):
    """The file of profiles, or one of them, is not usable; the message says why."""


@dataclass(frozen=True)
class Profile:
    """A named bundle; ``entries`` are as the operator wrote them, at ``place`` (file and line)."""

    name: str
    description: str
    interventions: tuple[Intervention, ...]
    entries: tuple[dict[str, Any], ...]
    place: str = ""


def load_profiles(path: Path, registry: Registry) -> dict[str, Profile]:
    """Read a file of profiles.

    Raises:
        ProfileError: it cannot be read, or says something that is not understood.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(f"{path}: is not TOML: {error}") from error
    return read_profiles(content, registry, str(path), text)


def read_profiles(
    content: Mapping[str, Any], registry: Registry, file: str = "", text: str = ""
) -> dict[str, Profile]:
    """Check what a file of profiles says; ``text`` is what the file holds, to name lines of it.

    Raises:
        ProfileError: the first mistake, with where it is.
    """
    unknown = sorted(content.keys() - {"profiles"})
    if unknown:
        what = f"unknown key {unknown[0]!r}; profiles are tables [profiles.NAME]"
        raise ProfileError(f"{file}: {what}")
    tables = content.get("profiles", {})
    if not isinstance(tables, dict):
        raise ProfileError(f"{file}: profiles are tables [profiles.NAME]")
    return {
        name: _profile(name, table, registry, f"{file}{_line(name, text)}")
        for name, table in tables.items()
    }


def check_default(name: str | None, profiles: Mapping[str, Profile]) -> None:
    """Refuse a default that is none of the profiles.

    Raises:
        ProfileError: the message says which there are.
    """
    if name is not None and name not in profiles:
        raise ProfileError(f"--default-profile: {unknown('profile', name, profiles)}")


def worded(profile: str, entries: Sequence[Any], error: InterventionError | RequestError) -> str:
    """What is wrong with an entry, in terms of the file: its number from 1, and its method."""
    found = ENTRY.match(error.param or "")
    if found is None:
        return f"profile {profile!r}: {error.message}"
    at = int(found[1])
    entry = entries[at] if at < len(entries) else None
    method = entry.get("method") if isinstance(entry, dict) else None
    which = f"entry {at + 1}" + (f" ({method})" if isinstance(method, str) else "")
    return f"profile {profile!r}, {which}: {error.message}"


def _line(name: str, text: str) -> str:
    """``:3`` where the table of a profile begins in line 3; empty if it is not written so."""
    header = re.search(
        rf"^[ \t]*\[\s*profiles\s*\.\s*[\"']?{re.escape(name)}[\"']?\s*\]", text, re.M
    )
    return f":{text.count(chr(10), 0, header.start()) + 1}" if header else ""


def _profile(name: str, table: object, registry: Registry, place: str) -> Profile:
    try:
        return _checked(name, table, registry, place)
    except ProfileError as error:
        raise ProfileError(f"{place}: {error}") from None


def _checked(name: str, table: object, registry: Registry, place: str) -> Profile:
    if not NAME.fullmatch(name):
        rule = "small letters, digits, '.', '_' and '-', at most 64, the first a letter or digit"
        raise ProfileError(f"a profile cannot be called {name[:80]!r}: {rule}")
    if not isinstance(table, dict):
        raise ProfileError(f"profile {name!r} is not a table [profiles.{name}]")
    unknown = sorted(table.keys() - FIELDS)
    if unknown:
        meant = hint(unknown[0], FIELDS, f"known: {', '.join(sorted(FIELDS))}")
        raise ProfileError(f"profile {name!r} has an unknown key {unknown[0]!r}; {meant}")
    description = table.get("description", "")
    if not isinstance(description, str) or len(description) > LONGEST_DESCRIPTION:
        limit = f"a text of at most {LONGEST_DESCRIPTION} characters"
        raise ProfileError(f"profile {name!r}: its description is {limit}")
    if not isinstance(table.get("interventions"), list):
        raise ProfileError(f"profile {name!r} has no list of interventions")
    try:
        interventions = registry.parse(table["interventions"])
    except InterventionError as error:
        raise ProfileError(worded(name, table["interventions"], error)) from None
    return Profile(name, description, interventions, tuple(table["interventions"]), place)
