"""A listening socket that is patient when the process runs out of file descriptors.

asyncio answers a failed accept with as many log records as its backlog is long, each with a
traceback, and tries again just as often a second later. Here one descriptor is kept in reserve to
take a connection and close it, so that clients hear at once, and one line a minute says why.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import time
from contextlib import suppress
from typing import Any

logger = logging.getLogger("saccade")

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
PAUSE_SECONDS = 0.9  # asyncio tries again after one
LOG_SECONDS = 60.0
OTHER_FILES = 128
"""Descriptors for everything but connections: images being fetched, artifacts, libraries."""


class Listener(socket.socket):
    """As any socket, but for what becomes of connections that find no descriptor."""

    def __init__(self, *arguments: int, **more: int) -> None:
        super().__init__(*arguments, **more)
        self._spare: int | None = _open_spare()
        self._paused_until = 0.0
        self._logged = -LOG_SECONDS

    def accept(self) -> tuple[socket.socket, Any]:
        """As every socket's; without descriptors the connection is closed.

        Raises:
            BlockingIOError: there is no connection, or it was closed.
            OSError: there is not even room to close it; asyncio then waits a second.
        """
        if time.monotonic() < self._paused_until:
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            self._say(error)
        try:
            self._turn_away()
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._paused_until = time.monotonic() + PAUSE_SECONDS
            raise
        raise BlockingIOError

    def close(self) -> None:
        """Close the spare descriptor too."""
        self._give_spare()
        super().close()

    def _turn_away(self) -> None:
        self._give_spare()
        try:
            connection, _ = super().accept()
            connection.close()
        finally:
            self._spare = _open_spare()

    def _give_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _say(self, error: OSError) -> None:
        if time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            logger.error(
                "new connections are turned away: %s; raise the limit on open files (ulimit -n) "
                "or lower --max-connections",
                error.strerror,
            )


def connections_within_limits(wanted: int, spare: int) -> int:
    """Connections that the limit on open files leaves room for, at most ``wanted``.

    The limit is raised as far as this process may.

    Args:
        spare: connections beyond these that must find room too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + spare + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    room = max(1, soft - min(OTHER_FILES, soft // 2) - spare)
    logger.warning(
        "the limit on open files, %d, leaves room for %d connections instead of %d (ulimit -n)",
        soft,
        room,
        wanted,
    )
    return room


def _open_spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
