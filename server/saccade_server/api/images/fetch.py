"""Fetch an image from the web without becoming a proxy into the operator's network.

One parser reads the URL, and the request is built from its pieces, so there is no second opinion to
exploit. The host is resolved once, every address must be public, and the connection goes to the
checked address itself (with the name in Host and SNI), so a second DNS answer cannot move it. No
redirects, no proxy, no compression, bounded bytes and time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote, urlsplit

import httpx2

from saccade_server.api.errors import BadRequest, Unprocessable
from saccade_server.api.images.data_urls import too_large
from saccade_server.api.layers.bodies import Budget, Share
from saccade_server.api.settings import ApiSettings
from saccade_server.logs.context import trace_context

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]

LONGEST_URL = 4096
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")

DNS_THREADS = 8

# What leads to addresses of the network's choosing rather than out: IANA's special-purpose
# registries, in full, because what Python counts as global differs from version to version; tunnels
# to IPv4 and the relays of one; multicast and what is reserved.
INWARD_IPV4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
)
# Within 2000::/3, which holds all that is public: protocols' own (Teredo, ORCHID),
# documentation, 6to4.
INWARD_IPV6 = ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
UNICAST_IPV6 = ipaddress.ip_network("2000::/3")
INWARD = tuple(ipaddress.ip_network(net) for net in INWARD_IPV4 + INWARD_IPV6)


@dataclass(frozen=True)
class Target:
    """A URL in checked pieces."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        default = {"http": 80, "https": 443}[self.scheme]
        return self.host if self.port == default else f"{self.host}:{self.port}"


def is_public(text: str) -> bool:
    """True for an address out on the Internet."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None and address not in UNICAST_IPV6:
            return False
        address = address.ipv4_mapped or address
    return not any(address in network for network in INWARD)


@dataclass
class FetchBudget:
    """Bytes that a request may still fetch, and its share of the memory for all requests' files."""

    left: int
    share: Share

    def take(self, size: int, param: str) -> None:
        """Count ``size`` bytes.

        Raises:
            BadRequest: they are too many for one request.
            Unavailable: other requests have taken the memory.
        """
        self.left -= size
        if self.left < 0:
            message = "The images of the request have too many bytes together."
            raise BadRequest(message, code="image_too_large", param=param)
        self.share.grow(size)


class ImageFetcher:
    """Fetches image files within the operator's limits."""

    def __init__(
        self,
        settings: ApiSettings,
        resolve: Resolve | None = None,
        is_public: Callable[[str], bool] = is_public,
    ) -> None:
        self.settings = settings
        # Name servers may be slow, and asyncio's own pool is everybody's.
        self._threads = ThreadPoolExecutor(DNS_THREADS, "saccade-dns")
        self._resolve = resolve or self._look_up
        self._is_public = is_public
        self._domains = frozenset(settings.allowed_media_domains)
        self._memory = Budget(settings.max_bodies_bytes)

    def close(self) -> None:
        """End the threads once they are idle."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def budget(self) -> Iterator[FetchBudget]:
        """A request's budget; its files count against the memory of all until the block is left."""
        with Share(self._memory) as share:
            yield FetchBudget(self.settings.max_fetched_bytes, share)

    async def fetch(self, url: str, param: str, budget: FetchBudget) -> bytes:
        """Return the file behind ``url``."""
        if not self.settings.allow_image_urls:
            message = (
                "This server fetches no images: send a data URL ('data:image/png;base64,...'), or "
                "let its operator start it with --allow-image-urls."
            )
            raise BadRequest(message, code="image_url_not_allowed", param=param)
        target = parse_url(url, param)
        if self._domains and target.host not in self._domains:
            message = (
                "This server fetches no images from that host: --allowed-media-domain lists those "
                "that it fetches from."
            )
            raise BadRequest(message, code="image_url_not_allowed", param=param)
        try:
            async with asyncio.timeout(self.settings.fetch_timeout):
                address = await self._checked_address(target, param)
                return await self._download(target, address, param, budget)
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError):
            raise _failed(param) from None

    async def _checked_address(self, target: Target, param: str) -> str:
        addresses = await self._resolve(target.host, target.port)
        if not addresses:
            raise _failed(param)
        if not all(self._is_public(address) for address in addresses):
            message = "Images are fetched from public addresses only."
            raise BadRequest(message, code="image_url_not_allowed", param=param)
        return addresses[0]

    def _trace(self) -> dict[str, str]:
        """What hands the request's trace on, to hosts that the operator has named."""
        found = trace_context.get() if self._domains else None
        return {} if found is None else found.headers

    async def _look_up(self, host: str, port: int) -> list[str]:
        """All addresses of ``host``."""
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return [str(item[4][0]) for item in found]

    async def _download(
        self, target: Target, address: str, param: str, budget: FetchBudget
    ) -> bytes:
        host = f"[{address}]" if ":" in address else address
        url = f"{target.scheme}://{host}:{target.port}{target.path}"
        headers = {
            "host": target.authority,
            "accept": "image/*",
            "accept-encoding": "identity",
            **self._trace(),
        }
        data = bytearray()
        async with (
            httpx2.AsyncClient(trust_env=False, follow_redirects=False) as client,
            client.stream(
                "GET", url, headers=headers, extensions={"sni_hostname": target.host}
            ) as response,
        ):
            encoding = response.headers.get("content-encoding", "identity")
            if response.status_code != 200 or encoding != "identity":
                raise _failed(param)
            async for chunk in response.aiter_raw():
                data += chunk
                budget.take(len(chunk), param)
                if len(data) > self.settings.max_image_bytes:
                    raise too_large(self.settings.max_image_bytes, param)
        return bytes(data)


def check_domains(names: Iterable[str]) -> tuple[str, ...]:
    """The hosts of ``--allowed-media-domain`` as they are compared.

    Raises:
        ValueError: one of them could be no URL's host; the message says which.
    """
    checked = []
    for given in names:
        name = given.strip().rstrip(".").lower()
        if not HOST.fullmatch(name):
            raise ValueError(
                f"--allowed-media-domain {given!r}: give a host name without scheme, port and "
                "wildcards; repeat the option for several"
            )
        checked.append(name)
    return tuple(checked)


def parse_url(url: str, param: str) -> Target:
    """Take ``url`` apart; anything unusual is refused."""
    odd = not url.isascii() or any(char <= " " or char in '\\"<>^`{|}\x7f' for char in url)
    try:
        parts = urlsplit("" if odd or len(url) > LONGEST_URL else url)
        port = parts.port
    except ValueError:
        raise _bad_url(param) from None
    scheme = parts.scheme.lower()
    host = (parts.hostname or "").rstrip(".").lower()
    if scheme not in ("http", "https") or "@" in parts.netloc or not HOST.fullmatch(host):
        raise _bad_url(param)
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = f"?{parts.query}" if parts.query else ""
    return Target(scheme, host, port or {"http": 80, "https": 443}[scheme], path + query)


def _bad_url(param: str) -> BadRequest:
    message = "An image URL is a data URL or a plain http(s) URL with a host name."
    return BadRequest(message, code="invalid_image_url", param=param)


def _failed(param: str) -> Unprocessable:
    return Unprocessable("The image could not be fetched.", code="image_fetch_failed", param=param)
