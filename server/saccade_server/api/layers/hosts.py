"""Which names a server without keys answers to.

A page that a user visits may have its own name resolve to this server's address (DNS rebinding). To
the browser the two are then one site, and no rule about other origins stops the page. But the
browser sends the page's name as Host, and nobody can make a visitor's browser send an address, or
localhost, for a page of another name.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from saccade_interventions.errors import brief
from saccade_server.api.errors import Misdirected
from saccade_server.api.layers.admission import open_routes
from saccade_server.api.settings import ApiSettings

HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[\w.%~-]+)?\]|[\w.-]{1,255})(?::[0-9]{0,5})?", re.ASCII)
PATTERN = re.compile(r"\*|(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?")


class CheckHost:
    """Answers only Hosts that are addresses, localhost, this machine's name, or listed.

    Probes are answered whatever the Host, and so is who sends none, which no browser does.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        listed = settings.allowed_hosts
        self.open = not checks_host(settings)
        self.open_routes = open_routes(settings)
        self.names = {"localhost", *own_names(), *listed}
        self.endings = tuple(name[1:] for name in listed if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.open or scope["path"] in self.open_routes:
            await self.app(scope, receive, send)
            return
        hosts = Headers(scope=scope).getlist("host")
        wrong = next((host for host in hosts if not self._answers_to(host)), None)
        if wrong is None:
            await self.app(scope, receive, send)
            return
        await _misdirected(wrong).response()(scope, receive, send)

    def _answers_to(self, header: str) -> bool:
        name = host_name(header)
        if name is None:
            return False
        return is_address(name) or name in self.names or name.endswith(self.endings)


def checks_host(settings: ApiSettings) -> bool:
    """True unless keys keep pages out, or any Host is listed."""
    return not settings.needs_key and "*" not in settings.allowed_hosts


def host_name(header: str) -> str | None:
    """The name in a Host header, as it is compared; None if it is not one."""
    match = HOST.fullmatch(header)
    return match[1].strip("[]").lower().removesuffix(".") if match else None


def is_address(name: str) -> bool:
    """True for an IPv4 or IPv6 address in the form that browsers send."""
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def own_names() -> tuple[str, ...]:
    """What this machine calls itself, in full and without its domain."""
    name = socket.gethostname().lower().removesuffix(".")
    return (name, name.partition(".")[0]) if name else ()


def given_name(host: str) -> tuple[str, ...]:
    """The name that a server was told to listen on, if it is a name and not an address."""
    return () if not host or is_address(host) else (host,)


def check_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    """The hosts of ``--allowed-host`` as they are compared: names, ``*.example.com``, ``*``.

    Raises:
        ValueError: one of them is neither; the message says which.
    """
    checked = []
    for pattern in patterns:
        name = pattern.strip().lower().removesuffix(".")
        if not (PATTERN.fullmatch(name) or is_address(name)):
            raise ValueError(
                f"--allowed-host {pattern!r}: give a host name without scheme and port, "
                "'*.example.com' for all names below one, or '*' for any"
            )
        checked.append(name)
    return tuple(checked)


def _misdirected(header: str) -> Misdirected:
    name = host_name(header)
    which = f"the Host {brief(name)}" if name else "this Host"
    return Misdirected(
        f"A server without keys does not answer to {which}. Ask it by its IP address or as "
        f"localhost, or start it with --allowed-host {name[:100] if name else 'NAME'}."
    )
