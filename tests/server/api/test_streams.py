"""Slow engines, failing engines, clients that leave, a server that stops."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import httpx2
import openai
import pytest

from saccade_server.api.errors import BadRequest
from saccade_server.models.conversation import PromptError
from saccade_testing.api.bodies import MODEL, chat_body, parse_events
from saccade_testing.api.server import MakeServer, Server, wait_for


def test_a_client_that_leaves_a_stream_aborts_it(server: Server):
    server.engine.stall_after = 3
    stream = server.openai().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True, n=2
    )
    next(iter(stream))
    assert len(server.engine.running) == 2
    stream.close()
    wait_for(lambda: not server.engine.running)


@contextlib.contextmanager
def asked(server, body):
    """A client that has asked, and leaves at the end of the block."""
    body = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as link:
        link.sendall(head.encode() + body)
        yield


@pytest.mark.parametrize("stall_after", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_byte(server: Server, stream, stall_after):
    server.engine.stall_after = stall_after
    with asked(server, chat_body(stream=stream)):
        wait_for(lambda: server.engine.running)
    wait_for(lambda: not server.engine.running)
    server.engine.stall_after = None
    assert server.chat().status_code == 200


def test_a_cancelled_asynchronous_call(server: Server):
    server.engine.stall_after = 1

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            call = asyncio.create_task(
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Hi"}]
                )
            )
            while not server.engine.running:
                await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    asyncio.run(main())
    wait_for(lambda: not server.engine.running)


def test_silence_is_filled(make_server: MakeServer):
    server = make_server(sse_keep_alive=0.05)
    server.engine.delay = 0.12
    server.engine.answer = "ab"
    text = server.chat(stream=True).text
    assert text.startswith(": keep-alive\n\n")
    assert text.count(": keep-alive\n\n") >= 3
    assert text.endswith("data: [DONE]\n\n")
    stream = server.openai().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "ab"


def test_an_error_in_mid_stream(server: Server):
    server.engine.fail_after = 3
    events = server.events()
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "engine_failure"
    assert "secret" not in json.dumps(events)
    stream = server.openai().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    with pytest.raises(openai.APIError):
        list(stream)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_at_once(server: Server, stream):
    server.engine.fail_after = 0
    response = server.chat(stream=stream)
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert response.json()["error"]["code"] == "engine_failure"
    assert "secret" not in response.text


STRONG = [
    {"method": "head_scale", "gain": 16, "layers": [0, 1]},
    {"method": "head_ablation", "layers": [2]},
]


@pytest.mark.parametrize("stream", [False, True])
def test_numbers_that_overflow_under_interventions_are_the_requests_own_fault(
    server: Server, stream
):
    server.engine.fail_after, server.engine.diverges = 0, True
    response = server.chat(stream=stream, interventions=STRONG)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("intervention_diverged", "interventions")
    assert error["type"] == "invalid_request_error"
    assert (
        "overflowed under the request's interventions (head_scale, head_ablation)"
        in (error["message"])
    )
    assert "secret" not in response.text
    plain = server.chat(stream=stream)
    assert plain.status_code == 500
    assert plain.json()["error"]["code"] == "engine_failure"


def test_numbers_that_overflow_in_mid_stream(server: Server):
    server.engine.fail_after, server.engine.diverges = 3, True
    events = server.events(interventions=STRONG)
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "intervention_diverged"
    assert "secret" not in json.dumps(events)


@pytest.mark.parametrize("stream", [False, True])
def test_no_room(server: Server, stream):
    server.engine.capacity = False
    response = server.chat(stream=stream, n=3)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "server_overloaded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine(server: Server, stream):
    server.engine.alive = False
    response = server.chat(stream=stream)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_dead"
    for path in ("/live", "/ready", "/health", "/load"):
        assert server.http.get(path).status_code == 503


def test_an_engine_that_dies_in_mid_stream(server: Server):
    server.engine.stall_after = 2
    with server.http.stream(
        "POST", "/v1/chat/completions", json=chat_body(stream=True)
    ) as response:
        pieces = response.iter_text()
        text = next(pieces)
        server.engine.alive = False
        server.engine.stall_after = None
        text += "".join(pieces)
    assert parse_events(text)[-2]["error"]["code"] == "engine_dead"


def test_what_was_begun_is_not_said_to_be_fit_for_another_server(make_server: MakeServer):
    """A proxy sends on what got a 503; this request may be what the engine died of."""
    server = make_server()
    server.engine.stall_after = 2
    answers: list[httpx2.Response] = []
    asking = threading.Thread(target=lambda: answers.append(server.chat()))
    asking.start()
    wait_for(lambda: bool(server.engine.running))
    server.engine.alive = False
    server.engine.stall_after = None
    asking.join(10)
    assert answers[0].status_code == 500
    assert answers[0].json()["error"]["code"] == "engine_dead"
    assert answers[0].headers["retry-after"] == "1"
    assert server.chat().status_code == 503


def test_surprises_are_not_explained(server: Server, monkeypatch: pytest.MonkeyPatch):
    def explode(*args):
        raise RuntimeError("at 0x7f00dead in /home/me/secret.py")

    monkeypatch.setattr(server.prompts, "chat", explode, raising=False)
    response = server.chat()
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    monkeypatch.undo()
    monkeypatch.setattr(server.prompts, "detokenizer", lambda tokens: None, raising=False)
    events = server.events() if (reply := server.chat(stream=True)).status_code == 200 else None
    assert events is None
    assert reply.status_code == 500


def test_an_answer_that_takes_too_long(make_server: MakeServer):
    server = make_server(request_timeout=0.2)
    server.engine.stall_after = 2
    response = server.chat()
    assert response.status_code == 504
    assert response.headers["x-should-retry"] == "false"
    assert server.events()[-2]["error"]["code"] == "request_timeout"
    assert not server.engine.running


def test_a_clock_that_is_set_ends_nothing(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch):
    server = make_server(request_timeout=30.0)
    server.engine.delay = 0.02
    shown = time.time
    with server.http.stream(
        "POST", "/v1/chat/completions", json=chat_body(stream=True)
    ) as response:
        pieces = response.iter_text()
        text = next(pieces)
        for days in (-365, 365):
            monkeypatch.setattr(time, "time", lambda days=days: shown() + days * 86400)
            assert server.chat().status_code == 200
        text += "".join(pieces)
    assert parse_events(text)[-2]["choices"][0]["finish_reason"] == "stop"


def test_draining_lets_requests_finish_and_refuses_new_ones(make_server: MakeServer):
    server = make_server()
    server.engine.delay = 0.05
    lifecycle = server.app.state.lifecycle
    with server.http.stream(
        "POST", "/v1/chat/completions", json=chat_body(stream=True)
    ) as response:
        pieces = response.iter_text()
        text = next(pieces)
        shutdown = asyncio.run_coroutine_threadsafe(lifecycle.shutdown(10), server.loop)
        wait_for(lambda: lifecycle.draining)
        refused = server.chat()
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_draining"
        assert refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) >= 1
        assert server.http.get("/ready").status_code == 503
        assert server.http.get("/live").status_code == 200
        text += "".join(pieces)
    events = parse_events(text)
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    shutdown.result(5)


def test_a_shutdown_that_waits_no_longer(make_server: MakeServer):
    server = make_server()
    server.engine.stall_after = 2
    lifecycle = server.app.state.lifecycle
    with server.http.stream(
        "POST", "/v1/chat/completions", json=chat_body(stream=True)
    ) as response:
        began = time.monotonic()
        asyncio.run_coroutine_threadsafe(lifecycle.shutdown(0.1), server.loop).result(5)
        text = response.read().decode()
    assert time.monotonic() - began < 2
    events = parse_events(text)
    assert events[-2]["error"]["code"] == "server_draining"
    assert events[-1] == "[DONE]"
    assert not server.engine.running


def test_a_shutdown_that_waits_no_longer_for_a_whole_answer(make_server: MakeServer):
    server = make_server()
    server.engine.stall_after = 2
    answers: list[httpx2.Response] = []
    asking = threading.Thread(target=lambda: answers.append(server.chat()))
    asking.start()
    wait_for(lambda: bool(server.engine.running))
    lifecycle = server.app.state.lifecycle
    asyncio.run_coroutine_threadsafe(lifecycle.shutdown(0.1), server.loop).result(5)
    asking.join(10)
    assert answers[0].status_code == 500
    assert answers[0].json()["error"]["code"] == "server_draining"


def test_a_client_that_never_reads_stops_nobody_else(make_server: MakeServer):
    server = make_server(send_timeout=1.0)
    lifecycle = server.app.state.lifecycle
    server.engine.answer = "x" * 400
    # More than the system's buffers hold between the two.
    fields = {"stream": True, "n": 16, "logprobs": True, "top_logprobs": 20}
    body = json.dumps(chat_body(**fields)).encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", server.port))
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        wait_for(lambda: lifecycle.in_flight)
        assert server.chat(max_tokens=3).status_code == 200
        time.sleep(0.5)
        assert lifecycle.in_flight == 1
        wait_for(lambda: not lifecycle.in_flight, 60)
        assert not server.engine.running
        assert raw.fileno() >= 0


def test_too_many_at_once(make_server: MakeServer):
    server = make_server(max_requests=1)
    server.engine.stall_after = 2
    with server.http.stream(
        "POST", "/v1/chat/completions", json=chat_body(stream=True)
    ) as response:
        pieces = response.iter_text()  # its end would close the connection
        next(pieces)
        refused = server.chat()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert server.http.get("/live").status_code == 200
    wait_for(lambda: not server.app.state.lifecycle.in_flight)
    server.engine.stall_after = None
    assert server.chat().status_code == 200


def test_work_for_a_client_that_left_keeps_its_place(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    server = make_server(prompt_workers=1)
    began, may_end = threading.Event(), threading.Event()
    honest = server.prompts.chat

    def slow(messages, **options):
        began.set()
        may_end.wait(30)
        return honest(messages, **options)

    monkeypatch.setattr(server.prompts, "chat", slow, raising=False)
    lifecycle = server.app.state.lifecycle
    with asked(server, chat_body()):
        assert began.wait(10)
    wait_for(lambda: not lifecycle.in_flight)
    began.clear()
    with asked(server, chat_body()):
        wait_for(lambda: lifecycle.in_flight)
    wait_for(lambda: not lifecycle.in_flight)
    assert not began.is_set()
    may_end.set()
    assert server.chat().status_code == 200
    assert len(server.engine.requests) == 1


def test_a_prompt_that_cannot_be_built(server: Server, monkeypatch: pytest.MonkeyPatch):
    def refuse(messages, **options):
        raise PromptError("roles must alternate")

    monkeypatch.setattr(server.prompts, "chat", refuse, raising=False)
    response = server.chat()
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["message"], error["param"]) == ("roles must alternate", "messages")


def test_errors_are_bounded():
    error = BadRequest("x" * 10_000, param="y" * 10_000)
    assert len(error.json()) < 1500
