"""Fetching images must not reach anything that the public could not reach itself."""

import asyncio
import base64
import socket
import threading
from contextlib import suppress
from contextvars import copy_context
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from saccade_server.api.errors import BadRequest, TooLarge, Unavailable, Unprocessable
from saccade_server.api.images.data_urls import read_data_url
from saccade_server.api.images.fetch import ImageFetcher, check_domains, is_public, parse_url
from saccade_server.api.settings import ApiSettings
from saccade_server.logs.context import trace_context
from saccade_server.models.conversation import PromptError
from saccade_server.trace_context import TraceContext
from saccade_testing.api.bodies import PICTURE, image_messages
from saccade_testing.api.server import MakeServer

OPEN = {"allow_image_urls": True, "fetch_timeout": 0.5, "max_image_bytes": 100_000}


# The first and the last address of what is not public.
INWARD = [
    ("0.0.0.0", "0.255.255.255"),
    ("10.0.0.0", "10.255.255.255"),
    ("100.64.0.0", "100.127.255.255"),
    ("127.0.0.0", "127.255.255.255"),
    ("169.254.0.0", "169.254.255.255"),
    ("172.16.0.0", "172.31.255.255"),
    ("192.0.0.0", "192.0.0.255"),
    ("192.0.2.0", "192.0.2.255"),
    ("192.88.99.0", "192.88.99.255"),
    ("192.168.0.0", "192.168.255.255"),
    ("198.18.0.0", "198.19.255.255"),
    ("198.51.100.0", "198.51.100.255"),
    ("203.0.113.0", "203.0.113.255"),
    ("224.0.0.0", "239.255.255.255"),
    ("240.0.0.0", "255.255.255.255"),
    ("::", "::1"),
    ("::10.0.0.1", "::8.8.8.8"),  # IPv4-compatible
    ("::ffff:0:0", "::ffff:0.255.255.255"),
    ("::ffff:10.0.0.0", "::ffff:10.255.255.255"),
    ("::ffff:127.0.0.1", "::ffff:169.254.169.254"),
    ("::ffff:192.0.0.8", "::ffff:192.88.99.1"),
    ("::ffff:0:10.0.0.1", "::ffff:0:8.8.8.8"),  # IPv4-translated
    ("64:ff9b::", "64:ff9b::ffff:ffff"),  # NAT64
    ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"),
    ("100::", "100::ffff:ffff:ffff:ffff"),
    ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff"),  # Teredo
    ("2001:2::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),  # 6to4
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("4000::", "5f00::1"),
    ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("fe80::1", "fe80::1%eth0"),
    ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
]
# What lies just beside them, and others.
OUTWARD = [
    ("1.0.0.0", "9.255.255.255"),
    ("11.0.0.0", "100.63.255.255"),
    ("100.128.0.0", "126.255.255.255"),
    ("128.0.0.0", "169.253.255.255"),
    ("169.255.0.0", "172.15.255.255"),
    ("172.32.0.0", "191.255.255.255"),
    ("192.0.1.0", "192.0.3.0"),
    ("192.88.98.255", "192.88.100.0"),
    ("192.167.255.255", "192.169.0.0"),
    ("198.17.255.255", "198.20.0.0"),
    ("198.51.99.255", "198.51.101.0"),
    ("203.0.112.255", "203.0.114.0"),
    ("223.255.255.255", "8.8.8.8"),
    ("::ffff:8.8.8.8", "::ffff:1.1.1.1"),
    ("2000::1", "2000:ffff::1"),
    ("2001:200::", "2001:db7:ffff::1"),
    ("2001:db9::", "2001:4860:4860::8888"),
    ("2003::", "2606:4700::1111"),
    ("3fff:1000::", "3ffe::1"),
]


@pytest.mark.parametrize("pair", INWARD, ids="-".join)
def test_private_addresses(pair):
    assert [is_public(address) for address in pair] == [False, False]


@pytest.mark.parametrize("pair", OUTWARD, ids="-".join)
def test_public_addresses(pair):
    assert [is_public(address) for address in pair] == [True, True]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "//example.com/x.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "gopher://example.com/x",
        "http://",
        "http:///x",
        "http://user@example.com/",
        "http://example.com@127.0.0.1/",
        "http://example.com\\@127.0.0.1/",
        "http://exa\tmple.com/",
        "http://exa\nmple.com/",
        " http://example.com/",
        "http://exämple.com/",
        "http://example。com/",
        "http://example.com:99999/",
        "http://example.com:x/",
        "http://[::1]/",
        "http://[fe80::1%25eth0]/",
        "http://-example.com/",
        "http://exa_mple.com/",
        "http://example.com/" + "x" * 5000,
    ],
    ids=lambda url: url[:40],
)
def test_odd_urls(url):
    with pytest.raises(BadRequest) as refused:
        parse_url(url, "here")
    assert refused.value.code == "invalid_image_url"


def test_a_url_in_pieces():
    target = parse_url("HTTPS://Example.COM.:8443/a%20b/ü".replace("ü", "c") + "?q=1#part", "here")
    assert (target.scheme, target.host, target.port) == ("https", "example.com", 8443)
    assert target.path == "/a%20b/c?q=1"
    assert target.authority == "example.com:8443"
    assert parse_url("http://example.com", "here").authority == "example.com"


class Origin(BaseHTTPRequestHandler):
    """Answers by path, badly where asked to."""

    seen: ClassVar[list[tuple[str, str]]] = []
    traces: ClassVar[list[tuple[str | None, str | None]]] = []
    picture = b""

    def do_GET(self):
        self.seen.append((self.path, self.headers["host"]))
        self.traces.append((self.headers["traceparent"], self.headers["tracestate"]))
        answer = getattr(self, "answer_" + self.path.strip("/"), None)
        if answer is None:
            self.send_error(int(self.path.strip("/")))
        else:
            answer()

    def send(self, body, **headers):
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_picture(self):
        self.send(self.picture, content_length=str(len(self.picture)))

    def answer_endless(self):
        self.send(b"")
        try:
            while True:
                self.wfile.write(b"x" * 10_000)
        except OSError:
            pass

    def answer_slow(self):
        self.send(b"")
        try:
            for _ in range(50):
                self.wfile.write(b"x")
                self.wfile.flush()
                threading.Event().wait(0.05)
        except OSError:
            pass

    def answer_redirect(self):
        self.send_response(302)
        self.send_header("location", "/picture")
        self.end_headers()

    def answer_short(self):
        self.send(b"x", content_length="500")

    def answer_gzip(self):
        self.send(b"x", content_encoding="gzip", content_length="1")

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def origin():
    """A web server; its port."""
    Origin.picture = base64.b64decode(PICTURE.partition(",")[2])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(url, addresses=("127.0.0.1",), public=True, **settings):
    """Fetch with a resolver of our own; returns the bytes and the names it was asked for."""
    asked = []

    async def resolve(host, port):
        asked.append(host)
        await asyncio.sleep(0)
        return list(addresses)

    options = {"is_public": (lambda address: True)} if public else {}
    fetcher = ImageFetcher(ApiSettings("test", **(OPEN | settings)), resolve, **options)
    with fetcher.budget() as left:
        return asyncio.run(fetcher.fetch(url, "here", left)), asked


def test_a_picture_is_fetched_from_the_address_that_was_checked(origin):
    Origin.seen.clear()
    data, asked = fetch(f"http://pictures.example:{origin}/picture")
    assert data == Origin.picture
    assert asked == ["pictures.example"]
    assert Origin.seen == [("/picture", f"pictures.example:{origin}")]


@pytest.mark.parametrize("what", ["404", "500", "403", "redirect", "short", "gzip", "slow"])
def test_what_the_origin_does_wrong(origin, what):
    with pytest.raises(Unprocessable) as refused:
        fetch(f"http://pictures.example:{origin}/{what}")
    assert refused.value.status == 422
    assert refused.value.code == "image_fetch_failed"


def test_an_endless_body(origin):
    with pytest.raises(BadRequest) as refused:
        fetch(f"http://pictures.example:{origin}/endless")
    assert refused.value.code == "image_too_large"


def test_a_request_has_a_budget(origin):
    with pytest.raises(BadRequest) as refused:
        fetch(
            f"http://pictures.example:{origin}/picture", max_fetched_bytes=len(Origin.picture) - 1
        )
    assert refused.value.code == "image_too_large"
    fetch(f"http://pictures.example:{origin}/picture", max_fetched_bytes=len(Origin.picture))


def test_names_are_looked_up_in_threads_of_their_own(monkeypatch: pytest.MonkeyPatch):
    threads = []

    def look_up(*args, **options):
        threads.append(threading.current_thread().name)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    fetcher = ImageFetcher(ApiSettings("test", **OPEN))
    with pytest.raises(Unprocessable), fetcher.budget() as budget:
        asyncio.run(fetcher.fetch("http://pictures.example/x", "here", budget))
    fetcher.close()
    assert [name.startswith("saccade-dns") for name in threads] == [True]


def test_nobody_there():
    with pytest.raises(Unprocessable):
        fetch("http://pictures.example:1/x")
    with pytest.raises(Unprocessable):
        fetch("http://pictures.example/x", addresses=())


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1"]])
def test_one_private_address_is_enough(origin, addresses):
    Origin.seen.clear()
    with pytest.raises(BadRequest) as refused:
        fetch(f"http://pictures.example:{origin}/picture", addresses, public=False)
    assert refused.value.code == "image_url_not_allowed"
    assert not Origin.seen


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0", "2130706433", "0x7f.1", "0177.0.0.1", "127.1"]
)
def test_the_ways_to_write_home(origin, host):
    Origin.seen.clear()
    fetcher = ImageFetcher(ApiSettings("test", **OPEN))
    with pytest.raises(BadRequest), fetcher.budget() as budget:
        asyncio.run(fetcher.fetch(f"http://{host}:{origin}/picture", "here", budget))
    fetcher.close()
    assert not Origin.seen


def test_only_listed_hosts(origin):
    listed = {"allowed_media_domains": check_domains(["Pictures.Example."])}
    assert fetch(f"http://Pictures.example.:{origin}/picture", **listed)[0] == Origin.picture
    for host in ("other.example", "pictures.example.evil", "x.pictures.example"):
        with pytest.raises(BadRequest) as refused:
            fetch(f"http://{host}:{origin}/picture", **listed)
        assert refused.value.code == "image_url_not_allowed"


def test_the_trace_goes_on_to_listed_hosts_only(origin):
    url = f"http://pictures.example:{origin}/picture"
    trace = TraceContext("ab" * 16, "cd" * 8, True, "a=1")

    def traced(**settings):
        Origin.traces.clear()
        within = copy_context()
        within.run(trace_context.set, trace)
        within.run(fetch, url, **settings)
        (found,) = Origin.traces
        return found

    listed = {"allowed_media_domains": ("pictures.example",)}
    assert traced(**listed) == (trace.traceparent, "a=1")
    assert traced() == (None, None)
    Origin.traces.clear()
    fetch(url, **listed)
    assert Origin.traces == [(None, None)]


def test_what_is_fetched_for_all_requests_shares_memory(origin):
    async def resolve(host, port):
        return ["127.0.0.1"]

    most = len(Origin.picture) * 3 // 2
    settings = ApiSettings("test", **OPEN, max_bodies_bytes=most)
    fetcher = ImageFetcher(settings, resolve, lambda address: True)

    def get(budget, path="picture"):
        return asyncio.run(fetcher.fetch(f"http://x.example:{origin}/{path}", "here", budget))

    with fetcher.budget() as first:
        assert get(first) == Origin.picture
        with pytest.raises(Unavailable), fetcher.budget() as second:
            get(second)
        with pytest.raises(TooLarge):  # alone it would not fit either
            get(first)
    for path in ("404", "short", "picture"):
        with suppress(Unprocessable), fetcher.budget() as later:
            get(later, path)
    with fetcher.budget() as last:
        assert get(last) == Origin.picture


def test_a_request_keeps_what_it_fetched_until_its_images_are_decoded(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    server = make_server(allow_image_urls=True, max_bodies_bytes=100_000)
    memory = server.app.state.services.fetcher._memory
    held = []

    async def fetch(self, url, param, budget):
        budget.take(60_000, param)
        return read_data_url(PICTURE, 10**6, param)

    def prepare(image):
        held.append(memory.used)
        raise PromptError("too odd")

    monkeypatch.setattr(ImageFetcher, "fetch", fetch)
    monkeypatch.setattr(server.prompts, "prepare_image", prepare, raising=False)
    for _ in range(2):
        answer = server.chat(messages=image_messages("http://x.example/1"))
        assert answer.status_code == 400
    assert (held, memory.used) == ([60_000] * 2, 0)


def test_off_unless_switched_on():
    with pytest.raises(BadRequest) as refused:
        fetch("http://pictures.example/x", allow_image_urls=False)
    assert refused.value.code == "image_url_not_allowed"
