"""Where a server listens: its ports are taken before the model loads, opened when it can answer."""

from __future__ import annotations

import errno
import gc
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import uvicorn
from fastapi import FastAPI

from saccade_server.api.layers.connections import HttpConfig
from saccade_server.api.layers.listener import Listener
from saccade_server.api.settings import ApiSettings

NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ListenError(ValueError):
    """The address cannot be had; the message says why and what helps."""


class Server(uvicorn.Server):
    """uvicorn, with the signals left to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: FastAPI, settings: ApiSettings) -> Server:
    """A server of ``app`` that listens where it is told when it runs.

    What there is in the process by now is taken to stay: the collector, which would go through
    every object of every library again and again, leaves it alone from now on.
    """
    gc.collect()
    gc.freeze()
    return Server(HttpConfig(app, settings, app.state.services.tally.refused))


def take(host: str, port: int) -> list[socket.socket]:
    """Bind every address that ``host`` stands for; nothing is accepted before :func:`open_up`.

    The sockets are exclusive as long as they do not listen: of two servers that load for minutes,
    the second is refused at once.

    Raises:
        ListenError: none can be had, or one of them is taken.
    """
    if not host:
        raise ListenError("--host is empty: 0.0.0.0 listens on every address of this machine")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ListenError(f"--host {host}: there is no address of this name") from None
    taken: list[socket.socket] = []
    refusal: OSError | None = None
    try:
        for family, *_, address in dict.fromkeys(found):
            try:
                taken.append(_bound(family, address))
            except OSError as error:
                if error.errno not in NOT_HERE:  # a name's other addresses may do
                    raise
                refusal = error
        if not taken and refusal is not None:
            raise refusal
    except OSError as error:
        release(taken)
        raise ListenError(_worded(error, host, port)) from None
    return taken


def reached_from_outside(sockets: Iterable[socket.socket]) -> bool:
    """True if one of the addresses is not loopback."""
    return not all(ip_address(each.getsockname()[0]).is_loopback for each in sockets)


def open_up(sockets: Iterable[socket.socket]) -> None:
    """Let clients connect, and the next server bind while connections of this one still close.

    Raises:
        ListenError: others listen there all the same.
    """
    for each in sockets:
        _share(each, True)
        try:
            each.listen()
        except OSError as error:
            host, port = each.getsockname()[:2]
            raise ListenError(_worded(error, host, port)) from None


def release(sockets: Iterable[socket.socket]) -> None:
    """Give the ports back."""
    for each in sockets:
        each.close()


def _bound(family: int, address: Any) -> socket.socket:
    # asyncio sets TCP_NODELAY only on sockets whose protocol is named.
    made = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            made.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Perhaps only by connections that a server before this one has closed. Bound, it
            # shares no more: one more server that tries the same would get the port too.
            _share(made, True)
            made.bind(address)
            _share(made, False)
    except BaseException:
        made.close()
        raise
    return made


def _share(bound: socket.socket, shares: bool) -> None:
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(shares))


def _worded(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} of {host} is in use: stop what listens there, or choose --port"
        case errno.EACCES | errno.EPERM:
            return f"port {port} needs rights that this user lacks: choose a --port above 1023"
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return f"--host {host} is not an address of this machine"
    return f"cannot listen on port {port} of {host}: {error.strerror}"
