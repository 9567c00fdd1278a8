"""Images in threads and a budget of their own: texts never wait, and everything is given back."""

import asyncio
import contextlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from saccade_server.api.deadline import Deadline
from saccade_server.api.errors import ApiError
from saccade_server.api.images import image_work
from saccade_server.models.prompt import PromptError
from saccade_server.models.views import Pixels, View
from saccade_testing.api.bodies import MODEL, PICTURE, chat_body, data_url, encode, image_messages
from saccade_testing.api.server import MakeServer, Server, wait_for

SIDE = 40
PIXELS = SIDE * SIDE


class Gate:
    """Holds every picture in its thread until it is opened."""

    def __init__(self, server, monkeypatch):
        self.seen = []
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()
        self.honest = server.prompts.prepare_image
        monkeypatch.setattr(server.prompts, "prepare_image", self.pass_through, raising=False)

    def pass_through(self, image):
        self.seen.append(image.size)
        self.begun.release()
        assert self.open.wait(60)
        return self.honest(image)

    def wait_for(self, count):
        for _ in range(count):
            assert self.begun.acquire(timeout=60)


@pytest.fixture
def picture():
    """Pictures of PIXELS pixels, each different, or of another size."""

    def make(shade=0, size=(SIDE, SIDE)):
        return data_url(encode(Image.new("L", size, shade)))

    return make


@pytest.fixture
def background():
    with ThreadPoolExecutor(8) as threads:
        yield threads.submit


def ask(server, *urls, **fields):
    return server.chat(messages=image_messages(*urls), **fields)


def budget_of(server):
    return server.app.state.services.images.budget


def leaving_client(server, url):
    """A client with an open request, which leaves when this is closed."""
    body = json.dumps(chat_body(messages=image_messages(url))).encode()
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )
    return contextlib.closing(client)


def test_texts_never_wait_for_images(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, picture, background
):
    server = make_server(image_workers=2)
    gate = Gate(server, monkeypatch)
    asked = [background(ask, server, picture(shade)) for shade in range(4)]
    gate.wait_for(2)
    assert server.chat().status_code == 200
    tokens = {"model": MODEL, "prompt": "Hi"}
    assert server.http.post("/v1/completions", json=tokens).status_code == 200
    entry = {"interventions": [], "messages": chat_body()["messages"]}
    validated = server.http.post("/v1/interventions/validate", json=entry)
    assert validated.status_code == 200
    assert len(gate.seen) == 2
    gate.open.set()
    assert [answer.result().status_code for answer in asked] == [200] * 4
    assert budget_of(server).taken == 0


def test_the_budget_refuses_and_is_given_back(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, picture, background
):
    server = make_server(max_pixels_in_flight=2 * PIXELS + 1, image_workers=1)
    gate = Gate(server, monkeypatch)
    asked = [background(ask, server, picture(shade)) for shade in range(2)]
    gate.wait_for(1)
    wait_for(lambda: budget_of(server).taken == 2 * PIXELS, 60)
    refused = ask(server, picture(2))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("overloaded_error", "server_overloaded")
    assert server.chat().status_code == 200
    gate.open.set()
    assert [answer.result().status_code for answer in asked] == [200] * 2
    assert budget_of(server).taken == 0
    assert ask(server, picture(2)).status_code == 200


def test_what_will_never_fit_is_not_told_to_try_again(make_server: MakeServer, picture):
    server = make_server(max_pixels_in_flight=2 * PIXELS)
    assert ask(server, picture(0), picture(1)).status_code == 200
    refused = ask(server, picture(0), picture(1), picture(2))
    assert refused.status_code == 400
    assert "retry-after" not in refused.headers
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("image_too_large", "messages")
    assert f"{3 * PIXELS} pixels" in error["message"]


def tiled(image):
    """Four tiles, whatever the picture's size."""
    return Pixels((View(np.zeros((2, 2, 3, SIDE, SIDE), np.float32), None, 4),))


def test_what_pictures_become_counts_too(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, picture, background
):
    """A picture of one pixel may become many tiles, which wait for the request's other pictures."""
    server = make_server(max_pixels_in_flight=9 * PIXELS, image_workers=2)
    tiny = [picture(shade, (1, 1)) for shade in range(4)]
    monkeypatch.setattr(server.prompts, "prepare_image", tiled, raising=False)
    refused = ask(server, *tiny[:3])
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("image_too_large", "messages")
    assert f"{12 * PIXELS} pixels" in error["message"]
    assert budget_of(server).taken == 0
    gate = Gate(server, monkeypatch)
    asked = background(ask, server, *tiny[:2])
    gate.wait_for(1)
    budget_of(server).take(6 * PIXELS)
    gate.open.set()
    answer = asked.result()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    budget_of(server).give(6 * PIXELS)
    assert budget_of(server).taken == 0
    assert ask(server, *tiny[:2]).status_code == 200
    assert budget_of(server).taken == 0


def fail(error):
    def prepare(image):
        raise error

    return prepare


@pytest.mark.parametrize(
    ("error", "status"), [(PromptError("too odd"), 400), (RuntimeError("secret"), 500)]
)
def test_errors_give_back(server: Server, monkeypatch: pytest.MonkeyPatch, picture, error, status):
    monkeypatch.setattr(server.prompts, "prepare_image", fail(error), raising=False)
    answer = ask(server, picture(0), picture(1))
    assert answer.status_code == status
    assert "secret" not in answer.text
    if status == 400:
        assert answer.json()["error"]["message"] == "Too odd."
        assert answer.json()["error"]["param"] == "messages[0].content[0].image_url"
    assert budget_of(server).taken == 0


def test_damaged_images_give_back(server: Server):
    whole = encode(Image.effect_noise((SIDE, SIDE), 50))
    answer = ask(server, PICTURE, data_url(whole[:500]))
    assert answer.json()["error"]["param"] == "messages[0].content[1].image_url"
    assert budget_of(server).taken == 0


def test_a_client_that_leaves(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, picture):
    """Work that has begun keeps its pixels until it ends; work that has not is never done."""
    server = make_server(image_workers=1)
    gate = Gate(server, monkeypatch)
    lifecycle = server.app.state.lifecycle
    with leaving_client(server, picture(0)):
        gate.wait_for(1)
        with leaving_client(server, picture(1)):
            wait_for(lambda: lifecycle.in_flight == 2, 60)
        wait_for(lambda: lifecycle.in_flight == 1, 60)
    wait_for(lambda: not lifecycle.in_flight, 60)
    assert budget_of(server).taken == PIXELS
    gate.open.set()
    wait_for(lambda: budget_of(server).taken == 0, 60)
    assert ask(server, picture(2)).status_code == 200
    assert len(gate.seen) == 2
    assert len(server.engine.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_decoding_counts_towards_the_deadline(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, picture, stream
):
    server = make_server(request_timeout=0.2)
    gate = Gate(server, monkeypatch)
    late = ask(server, picture(), stream=stream)
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "request_timeout"
    assert late.headers["x-should-retry"] == "false"
    gate.open.set()
    wait_for(lambda: budget_of(server).taken == 0, 60)
    assert not server.engine.requests


def test_fetching_counts_towards_the_deadline(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    server = make_server(request_timeout=0.2, allow_image_urls=True)

    async def never(*arguments):
        await asyncio.Event().wait()

    monkeypatch.setattr(server.app.state.services.fetcher, "fetch", never)
    late = ask(server, "https://images.example/x.png")
    assert (late.status_code, late.json()["error"]["code"]) == (504, "request_timeout")


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/completions", {"prompt": ["Hi", "Ho"]}),
        ("/v1/interventions/validate", {"interventions": [], "prompt_tokens": [1]}),
        ("/tokenize", {"prompt": "Hi"}),
    ],
)
def test_rendering_counts_towards_the_deadline(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, route, body
):
    server = make_server(request_timeout=0.2)
    may_end = threading.Event()

    def slow(prompt, **options):
        assert may_end.wait(60)

    for name in ("completion", "tokens"):
        monkeypatch.setattr(server.prompts, name, slow, raising=False)
    late = server.http.post(route, json=body)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "request_timeout")
    may_end.set()


def test_what_is_left_of_a_deadline(monkeypatch: pytest.MonkeyPatch):
    async def main():
        deadline = Deadline(100.0)
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 60)
        assert 30 < deadline.left <= 40
        monkeypatch.setattr(loop, "time", lambda: now() + 600)
        assert deadline.left == 0
        with pytest.raises(ApiError, match="took too long"):
            async with deadline.kept():
                await asyncio.sleep(60)
        monkeypatch.setattr(loop, "time", now)
        with pytest.raises(TimeoutError):
            async with deadline.kept():
                raise TimeoutError  # of something else inside

    asyncio.run(main())


def test_large_images_are_passed_by_others(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, picture, background
):
    monkeypatch.setattr(image_work, "LARGE_PIXELS", PIXELS)
    server = make_server(image_workers=1)
    gate = Gate(server, monkeypatch)
    sizes = [(SIDE + extra, SIDE) for extra in (1, 2, 3)]
    asked = [background(ask, server, picture(0, size)) for size in sizes]
    gate.wait_for(1)
    gate_for_large, gate.open = gate.open, threading.Event()
    gate.open.set()
    assert ask(server, picture()).status_code == 200
    assert len(gate.seen) == 2  # one large picture is unpacked at a time
    gate_for_large.set()
    assert [answer.result().status_code for answer in asked] == [200] * 3


def test_requests_take_turns(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, picture, background
):
    server = make_server(image_workers=1)
    gate = Gate(server, monkeypatch)
    many = background(ask, server, *(picture(shade, (30, 30)) for shade in range(3)))
    gate.wait_for(1)
    one = background(ask, server, picture(9, (20, 20)))
    wait_for(lambda: budget_of(server).taken == 3 * 30 * 30 + 20 * 20, 60)
    gate.open.set()
    assert one.result().status_code == many.result().status_code == 200
    assert gate.seen.index((20, 20)) in (1, 2)  # the queue may be entered a little later


def test_what_the_model_cannot_use_is_not_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch, picture
):
    """The prompt processor says how much smaller; the picture is made so before it comes."""
    asked = []

    def reduction(width, height):
        asked.append((width, height))
        return 4

    gate = Gate(server, monkeypatch)
    gate.open.set()
    monkeypatch.setattr(server.prompts, "reduction", reduction, raising=False)
    assert ask(server, picture(0, (403, 200))).status_code == 200
    assert (asked, gate.seen) == ([(403, 200)], [(101, 50)])
