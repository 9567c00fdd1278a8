"""Nothing that clients send, and no key, is in a log, a span or a metric, whatever is done with it.

Everything hidden holds one word; every way to send it ends in an answer, a refusal or a failure.
"""

import base64
import io
import json
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from saccade_server.api.answers import Answer
from saccade_server.api.images.fetch import ImageFetcher
from saccade_server.logs.formats import LogFormat
from saccade_testing.api.bodies import chat_body, data_url, image_messages
from saccade_testing.api.collector import Collector
from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.logged import served_log
from saccade_testing.api.server import MakeServer, Server, wait_for

HIDDEN = "xylophone"
FORGING = f"{HIDDEN}\n2026-11-28 00:00:00,000 CRITICAL saccade {HIDDEN}\x1b[2J\x9b31m\u2028{HIDDEN}"
LONG = HIDDEN * 20_000
PASTA = {"method": "pasta", "spans": [[0, 2]], "layers": [1], "alpha": 0.5}


def picture(**told: str) -> bytes:
    """A picture whose pixels and texts say it."""
    image = Image.new("RGB", (8, 6), "red")
    image.frombytes((HIDDEN.encode() * 20)[: 8 * 6 * 3])
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, value in told.items():
        info.add_text(name, value)
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


WHOLE = picture(Comment=HIDDEN, zTXt=HIDDEN)
PIXELS = base64.b64encode(WHOLE).decode()[-40:]

BODIES: dict[str, dict[str, Any]] = {
    "prompt": chat_body(messages=[{"role": "user", "content": FORGING}]),
    "long prompt": chat_body(messages=[{"role": "user", "content": LONG}]),
    "system and name": chat_body(
        messages=[
            {"role": "system", "content": HIDDEN},
            {"role": "user", "name": FORGING, "content": HIDDEN},
        ]
    ),
    "stop": chat_body(stop=[HIDDEN, FORGING]),
    "stream": chat_body(messages=[{"role": "user", "content": HIDDEN}], stream=True),
    "image": chat_body(messages=image_messages(data_url(WHOLE), text=HIDDEN)),
    "half an image": chat_body(messages=image_messages(data_url(WHOLE[:-30]))),
    "no image": chat_body(messages=image_messages(data_url(HIDDEN.encode()))),
    "url": chat_body(messages=image_messages(f"http://{HIDDEN}:{HIDDEN}@a.b/c?{HIDDEN}#{HIDDEN}")),
    "fetched url": chat_body(messages=image_messages(f"http://listed.example/{HIDDEN}?{HIDDEN}")),
    "model": chat_body(model=FORGING),
    "profile": chat_body(intervention_profile=FORGING),
    "method": chat_body(interventions=[{"method": FORGING}]),
    "parameter": chat_body(interventions=[{"method": "vcd", FORGING: FORGING}]),
    "span": chat_body(interventions=[{"method": "pasta", "text": FORGING}]),
    "unknown field": chat_body(**{f"What is a {HIDDEN}?": FORGING, HIDDEN + " ": 1}),
    "user": chat_body(user=FORGING, metadata={HIDDEN: HIDDEN}, safety_identifier=HIDDEN),
    "wrong type": chat_body(temperature=FORGING, messages=FORGING),
    "detector": chat_body(detectors=[FORGING]),
    "trace": chat_body(trace={FORGING: [FORGING]}),
    "tools": chat_body(tools=[{"type": "function", "function": {"name": FORGING}}]),
    "texts of tools": chat_body(
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": HIDDEN,
                    "parameters": {"properties": {HIDDEN: {"const": FORGING}}},
                },
            }
        ],
        tool_choice={"type": "function", "function": {"name": FORGING}},
    ),
    "template": chat_body(chat_template_kwargs={HIDDEN: FORGING, "mood": FORGING}),
    "cache salt": chat_body(cache_salt=FORGING, seed=1),
}


def fail(*given: Any, **more: Any) -> Any:
    raise ValueError(FORGING) from KeyError(FORGING)


def render(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.prompts, "chat", fail)


def answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answer, "receipt", fail)


def engine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.engine.fail_after = 1


def events(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answer, "envelope", fail)


TROUBLES: list[Callable[[Server, pytest.MonkeyPatch], None]] = [render, answer, engine, events]


async def nowhere(host: str, port: int) -> list[str]:
    raise OSError(FORGING)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def server(collector: Collector, make_server: MakeServer) -> Server:
    made = make_server(
        FakeEngine(answer=HIDDEN),
        profiles={"p": {"interventions": [PASTA]}},
        otlp_traces_endpoint=collector.url + "/v1/traces",
        api_keys=("key-of-a-" + HIDDEN,),
        allow_image_urls=True,
        allowed_media_domains=("listed.example",),
    )
    made.http.headers["authorization"] = f"Bearer key-of-a-{HIDDEN}"
    return made


def check(written: str, collector: Collector, metrics: str) -> None:
    for told in (written, str(collector.spans), str(collector.resources), metrics):
        assert HIDDEN not in told.lower()
        assert PIXELS not in told
        assert "\x1b" not in told
        assert "\x9b" not in told


def metrics_of(server: Server) -> str:
    """What /metrics says, where there is one."""
    response = server.http.get("/metrics")
    return response.text if response.status_code == 200 else ""


def ended(server: Server, collector: Collector, written: io.StringIO, requests: int) -> None:
    """Wait until all that is said of these requests has been said."""
    wait_for(lambda: written.getvalue().count("saccade.access") >= requests)
    server.app.state.services.spans.close()
    check(written.getvalue(), collector, metrics_of(server))
    assert collector.spans
    collector.spans.clear()


@pytest.mark.parametrize("form", list(LogFormat))
def test_what_bodies_hold(
    server: Server, collector: Collector, monkeypatch: pytest.MonkeyPatch, form: LogFormat
) -> None:
    fetcher: ImageFetcher = server.app.state.services.fetcher
    monkeypatch.setattr(fetcher, "_resolve", nowhere)
    statuses = {}
    with served_log(form) as written:
        for name, body in BODIES.items():
            response = server.http.post("/v1/chat/completions", json=body)
            statuses[name] = response.status_code
        ended(server, collector, written, len(BODIES))
        if form is LogFormat.JSON:
            entries = [json.loads(line) for line in written.getvalue().splitlines()]
            assert all(entry["process"] == "api" for entry in entries)
    assert {statuses[name] for name in ("prompt", "stop", "stream", "image")} == {200}
    assert statuses["fetched url"] == 422
    assert not [name for name, status in statuses.items() if status >= 500]


@pytest.mark.parametrize("form", list(LogFormat))
@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
def test_what_fails_of_it(
    server: Server,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    form: LogFormat,
    trouble: Callable[[Server, pytest.MonkeyPatch], None],
) -> None:
    trouble(server, monkeypatch)
    said = [{"role": "user", "content": FORGING}]
    with served_log(form) as written:
        for stream in (False, True):
            server.chat(messages=said, stream=stream)
        ended(server, collector, written, 2)
        text = written.getvalue()
    if form is LogFormat.JSON:
        levels = [json.loads(line)["level"] for line in text.splitlines()]
        assert "error" in levels
    else:
        firsts = [line for line in text.splitlines() if not line.startswith("    ")]
        assert all(line.startswith("20") for line in firsts)
        assert any(" ERROR " in line for line in firsts)


def test_what_heads_hold(server: Server, collector: Collector) -> None:
    word = HIDDEN.encode()
    lines = [
        b"authorization: Bearer " + word,
        b"authorization: Basic " + word,
        b"authorization: \x1b[2J" + word + b"\x9b",
        b"x-forwarded-for: a " + word,
        b"x-forwarded-for: \x1b[2J\x9b31m",
        b"cookie: " + word,
        b"referer: http://" + word + b"@x/?" + word,
        b"user-agent: " + word,
        b"x-intervention-profile: " + word,
        b"x-request-id: " + word + b"?",
        b"traceparent: " + word,
        b"tracestate: " + word + b"=" + word,  # of no trace
        b"content-type: " + word,
        b"x-saccade-affinity: " + word,
        b"content-length: " + word,
        b"expect: " + word,
        b"transfer-encoding: " + word,
    ]
    targets = [b"/v1/completions?" + word, b"http://" + word + b":" + word + b"@a/?" + word]
    with served_log(LogFormat.TEXT) as written:
        for target in targets:
            for line in lines:
                with socket.create_connection(("127.0.0.1", server.port)) as connection:
                    head = b"POST " + target + b" HTTP/1.1\r\nhost: localhost\r\n" + line
                    connection.sendall(head + b"\r\nconnection: close\r\n\r\n")
                    while connection.recv(65536):
                        pass
        # What is no HTTP has no line.
        ended(server, collector, written, len(targets) * (len(lines) - 2))


def test_libraries_are_not_heard_below_warnings() -> None:
    with served_log(LogFormat.TEXT) as written:
        for name in ("httpx2", "httpcore2.http11", "PIL.PngImagePlugin", "urllib3", "asyncio"):
            logging.getLogger(name).info(HIDDEN)
            logging.getLogger(name).debug(HIDDEN)
        logging.getLogger("saccade_server.x").debug("heard")
        assert HIDDEN not in written.getvalue()
        assert "heard" in written.getvalue()
