"""Files that a running server reads again: on SIGHUP, all of them, and all or none counts.

Each is read and checked off the event loop, as at the start of a server. Only when every one is
good do they come into force, in one turn of the loop, so no request sees a part of the change.
Requests in flight keep what they selected. What is wrong with a file is logged, and then nothing
has changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saccade_server.api.access.key_file import (
    KeyFileError,
    check_distinct,
    check_tokens,
    load_keys,
)
from saccade_server.api.access.keys import KeyRing
from saccade_server.api.services import Services
from saccade_server.requests.profiles import load_profiles

logger = logging.getLogger("saccade.reload")

Apply = Callable[[], str]
"""Puts what was read into force, on the event loop; cannot fail. Returns what the log says."""


@dataclass(frozen=True)
class Reloadable:
    """A file, and how it is read again.

    ``read`` runs in a thread and changes nothing. It raises ValueError or OSError for a file that
    cannot count.
    """

    path: Path
    read: Callable[[], Apply]


class ReloadError(ValueError):
    """A file cannot count; the message names it and says why."""


async def read_all(files: Sequence[Reloadable]) -> list[Apply]:
    """Read and check every file. Nothing has changed until all of the result is called.

    Raises:
        ReloadError: the first that cannot count. What is no fault of the file is its cause.
    """
    found: list[Apply] = []
    for file in files:
        try:
            found.append(await asyncio.to_thread(file.read))
        except (ValueError, OSError) as error:
            raise ReloadError(_said(file, error)) from None
        except Exception as error:  # whatever it is, the server goes on as it was
            raise ReloadError(_said(file, error)) from error
    return found


async def reload(files: Sequence[Reloadable]) -> bool:
    """Read every file again. False if one cannot count; then nothing has changed."""
    try:
        found = await read_all(files)
    except ReloadError as error:
        surprise = error.__cause__
        logger.error("nothing was reloaded, what was in force stays: %s", error, exc_info=surprise)
        return False
    for apply in found:
        logger.info("reloaded: %s", apply())
    if not files:
        logger.warning("there is nothing to reload: the server was started without such a file")
    return True


def profiles_file(path: Path, services: Services) -> Reloadable:
    """The operator's profiles."""

    def read() -> Apply:
        profiles = load_profiles(path, services.registry)
        services.check_profiles(profiles)
        services.check_deployment(profiles)

        def apply() -> str:
            services.profiles.replace(profiles)
            return f"{len(profiles)} profiles of {path}"

        return apply

    return Reloadable(path, read)


def keys_file(path: Path, services: Services) -> Reloadable:
    """The operator's keys. Requests in flight keep the limits with which they came."""

    def read() -> Apply:
        settings = replace(services.settings, keys=load_keys(path))  # checks the limits
        keys = settings.all_keys
        check_distinct(keys)
        check_tokens(keys, services.room)
        if services.keys.guards and not KeyRing(keys).guards:
            message = "only keys of admins are left, which would open the server to everybody"
            raise KeyFileError(f"{path}: {message}; if you want that, start it so")

        def apply() -> str:
            services.keys.keys = keys
            return f"{len(settings.keys)} keys of {path}"

        return apply

    return Reloadable(path, read)


def _said(file: Reloadable, error: Exception) -> str:
    message = " ".join(str(error).split())
    return message if str(file.path) in message else f"{file.path}: {message}"
