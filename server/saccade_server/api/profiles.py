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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade_interventions.base import Intervention
from saccade_interventions.errors import InterventionError
from saccade_interventions.registry import Registry
from saccade_server.api.errors import BadRequest
from saccade_server.api.rehearsal import check_for_some_prompt
from saccade_server.api.services import Services

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
FIELDS = frozenset({"description", "interventions"})
LONGEST_DESCRIPTION = 1000


class ProfileError(ValueError):
    """The file of profiles, or one of them, is not usable; the message says why."""


@dataclass(frozen=True)
class Profile:
    """A named bundle; ``entries`` are as the operator wrote them."""

    name: str
    description: str
    interventions: tuple[Intervention, ...]
    entries: tuple[dict[str, Any], ...]


def load_profiles(path: Path, registry: Registry) -> dict[str, Profile]:
    """Read a file of profiles.

    Raises:
        ProfileError: it cannot be read, or says something that is not understood.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(f"{path}: {error}") from error
    try:
        return read_profiles(content, registry)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from None


def read_profiles(content: Mapping[str, Any], registry: Registry) -> dict[str, Profile]:
    """Check what a file of profiles says.

    Raises:
        ProfileError: the first mistake, with where it is.
    """
    unknown = sorted(content.keys() - {"profiles"})
    if unknown:
        raise ProfileError(f"unknown key {unknown[0]!r}; profiles are tables [profiles.NAME]")
    tables = content.get("profiles", {})
    if not isinstance(tables, dict):
        raise ProfileError("profiles are tables [profiles.NAME]")
    return {name: _profile(name, table, registry) for name, table in tables.items()}


def check_profiles(services: Services) -> None:
    """Refuse profiles that the served model cannot run on any prompt.

    Raises:
        ProfileError: names the profile and what is wrong with it.
    """
    for profile in services.profiles.values():
        try:
            services.check_tested(profile.interventions)
            check_for_some_prompt(services, profile.interventions)
        except (InterventionError, BadRequest) as error:
            raise ProfileError(_worded(profile.name, error)) from None


def _profile(name: str, table: object, registry: Registry) -> Profile:
    if not NAME.fullmatch(name):
        rule = "small letters, digits, '.', '_' and '-', at most 64, the first a letter or digit"
        raise ProfileError(f"a profile cannot be called {name[:80]!r}: {rule}")
    if not isinstance(table, dict):
        raise ProfileError(f"profile {name!r} is not a table [profiles.{name}]")
    unknown = sorted(table.keys() - FIELDS)
    if unknown:
        raise ProfileError(f"profile {name!r} has an unknown key {unknown[0]!r}")
    description = table.get("description", "")
    if not isinstance(description, str) or len(description) > LONGEST_DESCRIPTION:
        limit = f"a text of at most {LONGEST_DESCRIPTION} characters"
        raise ProfileError(f"profile {name!r}: its description is {limit}")
    if not isinstance(table.get("interventions"), list):
        raise ProfileError(f"profile {name!r} has no list of interventions")
    try:
        interventions = registry.parse(table["interventions"])
    except InterventionError as error:
        raise ProfileError(_worded(name, error)) from None
    return Profile(name, description, interventions, tuple(table["interventions"]))


def _worded(name: str, error: InterventionError | BadRequest) -> str:
    return f"profile {name!r}: {error.param}: {error.message}"
