"""A server that waits no longer answers whatever is open, wherever it is, with an error object."""

import asyncio
import socket
import threading
import time

import pytest

from saccade_testing.api.bodies import PICTURE
from saccade_testing.api.server import MakeServer, wait_for


def shut_down(server, timeout=0.0, grace=0.3):
    lifecycle = server.app.state.lifecycle
    return asyncio.run_coroutine_threadsafe(lifecycle.shutdown(timeout, grace), server.loop)


def ask_aside(server, **fields):
    """A chat whose response appears in the list that is returned."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(server.chat(**fields)), daemon=True)
    thread.start()
    return answers, thread


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("step", ["prepare_image", "chat"])
def test_a_prompt_that_is_still_prepared(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, step, stream
):
    server = make_server()
    may_end, began = threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        began.set()
        may_end.wait(20)
        raise AssertionError("nobody waits for this")

    monkeypatch.setattr(server.prompts, step, slow, raising=False)
    picture = {"type": "image_url", "image_url": {"url": PICTURE}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}]
    answers, thread = ask_aside(server, stream=stream, messages=messages)
    try:
        assert began.wait(20)
        shut_down(server).result(20)
        thread.join(20)
    finally:
        may_end.set()
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "server_draining"
    assert answers[0].headers["connection"] == "close"


def test_a_body_that_still_arrives(make_server: MakeServer):
    server = make_server()
    with socket.create_connection(("127.0.0.1", server.port), 20) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b'content-type: application/json\r\ncontent-length: 100\r\n\r\n{"model"'
        )
        wait_for(lambda: len(server.app.state.lifecycle._open) == 1)
        began = time.monotonic()
        shut_down(server).result(20)
        reply = raw.recv(65536)
    assert time.monotonic() - began < 4
    assert reply.startswith(b"HTTP/1.1 503")
    assert b"server_draining" in reply


def test_a_generation_that_begins_after_the_stop(make_server: MakeServer):
    """Prepared just in time: it is told at once, and does not wait for the next stop."""
    server = make_server()
    server.engine.stall_after = 2
    server.app.state.lifecycle.stopped = True
    response = server.chat()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "server_draining")
    assert not server.engine.running


def test_nothing_is_abandoned_that_ends_in_time(make_server: MakeServer):
    server = make_server()
    server.engine.delay = 0.02
    answers, thread = ask_aside(server)
    wait_for(lambda: server.engine.running)
    shut_down(server, timeout=20.0).result(30)
    thread.join(20)
    assert answers[0].status_code == 200
