"""The OpenAPI document against what is answered. Every test of this folder checks its answers
against it (documented.py); here everything documented is also seen to happen."""

import hashlib
import json
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from saccade_interventions.artifacts import write_artifact
from saccade_server.api.layers.heads import LimitHead
from saccade_testing.api.fakes import INFO, FakeEngine
from saccade_testing.api.server import MakeServer, Server

KEYS = {"api_keys": ("user",), "admin_keys": ("root",)}
USER, ROOT = ({"authorization": f"Bearer {key}"} for key in ("user", "root"))
LINK = f"/v1/traces/{'0' * 64}"
TRACED = {"prompt": "Hi", "trace": {"entropy": True, "delivery": "link"}}
PROBES = ("/live", "/ready", "/health")
GETS = (
    "/v1/models",
    "/v1/models/saccade-test",
    "/v1/interventions",
    "/v1/interventions/var",
    "/v1/profiles",
    "/v1/artifacts",
    "/v1/deployment",
    "/version",
    "/load",
    "/metrics",
    *PROBES,
)
POSTS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/score": {"prompt": "Hi", "continuations": ["x"]},
    "/v1/interventions/validate": {"interventions": [{"method": "locore"}]},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [72, 105]},
}
ADMINS = {f"{method} /v1/artifacts/{{digest}}" for method in ("put", "delete")}
GENERATING = ("/v1/chat/completions", "/v1/completions")


@pytest.fixture
def heads():
    """An artifact made for the served model, and its route."""
    pairs = np.asarray([[0, 1]], np.int32)
    data = write_artifact("heads", INFO.fingerprint, {"heads": pairs})
    return data, f"/v1/artifacts/{hashlib.sha256(data).hexdigest()}"


def documented(server):
    document = server.app.openapi()
    return {
        (method.upper(), path, int(status))
        for path, item in document["paths"].items()
        for method, operation in item.items()
        for status in operation["responses"]
    }


def late_body(server, method, path, kind):
    """Announce a body and send half of it."""
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\n"
        "authorization: Bearer root\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n{"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as link:
        link.sendall(head.encode())
        assert b"408" in link.recv(65536) + link.recv(65536)


def link_of_a_trace(server):
    """Where a trace is that an answer of the server linked to."""
    answer = server.http.post("/v1/completions", json=TRACED, headers=ROOT)
    return answer.json()["choices"][0]["trace"]["link"] if answer.is_success else LINK


def all_routes(server, data, artifact, headers):
    for path in (*GETS, link_of_a_trace(server)):
        server.http.get(path, headers=headers)
    for path, body in POSTS.items():
        server.http.post(path, json=body, headers=headers)
    server.http.get(artifact, headers=headers)
    server.http.put(artifact, content=data, headers=headers)
    server.http.delete(artifact, headers=headers)


def good_requests(server, data, artifact):
    for _ in range(2):  # 201, then 200
        server.http.put(artifact, content=data, headers=ROOT)
    all_routes(server, data, artifact, ROOT)
    for path in GENERATING:
        server.http.post(path, json=POSTS[path] | {"stream": True}, headers=USER)


def bad_requests(server, data, artifact):
    for path, body in POSTS.items():
        server.http.post(path, json=body | {"model": 5}, headers=USER)
        server.http.post(path, json=body | {"model": "another"}, headers=USER)
        server.http.post(path, content=b"{}", headers=USER | {"content-type": "text/plain"})
        server.http.post(path, json=body | {"x": "x" * 2**21}, headers=USER)
    url = {"type": "image_url", "image_url": {"url": "http://pictures.invalid/a.png"}}
    seen = {"messages": [{"role": "user", "content": [url]}], "interventions": []}
    for path in ("/v1/chat/completions", "/v1/interventions/validate", "/tokenize"):
        server.http.post(path, json=seen, headers=USER)
    server.http.post("/v1/score", json=seen | {"continuations": ["x"]}, headers=USER)
    for path in ("/v1/models/x", "/v1/interventions/x", f"/v1/artifacts/{'0' * 64}", LINK):
        server.http.get(path, headers=USER)
    server.http.put(artifact, content=b"no", headers=ROOT)
    server.http.put(artifact, content=data, headers=USER)
    server.http.put(artifact, content=data, headers=ROOT | {"content-type": "text/html"})
    server.http.put(artifact, content=b"0" * 5000, headers=ROOT)
    server.http.delete(artifact, headers=USER)
    server.http.delete(f"/v1/artifacts/{'0' * 64}", headers=ROOT)
    profiles = server.app.state.services.profiles
    profiles.naming = lambda digest: "mine"
    server.http.delete(artifact, headers=ROOT)
    del profiles.naming
    all_routes(server, data, artifact, ROOT | {"x": "x" * 2**16})


def late_requests(server, artifact):
    for path in POSTS:
        late_body(server, "POST", path, "application/json")
    late_body(server, "PUT", artifact, "application/octet-stream")


def slow_preparation(server, monkeypatch):
    """A prompt that is not made in time."""
    may_end = threading.Event()
    for name in ("completion", "tokens", "text"):
        monkeypatch.setattr(server.prompts, name, lambda *_, **__: may_end.wait(60))
    body = {"interventions": [], "prompt_tokens": [1]}
    server.http.post("/v1/interventions/validate", json=body, headers=USER)
    for path in ("/tokenize", "/detokenize", "/v1/score"):
        server.http.post(path, json=POSTS[path], headers=USER)
    monkeypatch.undo()
    may_end.set()


def in_trouble(server, data, artifact, monkeypatch):
    """Draining, without an engine, and broken."""
    server.app.state.services.lifecycle.draining = True
    all_routes(server, data, artifact, ROOT)
    server.app.state.services.lifecycle.draining = False
    server.engine.alive = False
    for path in ("/live", "/load"):
        server.http.get(path, headers=ROOT)
    monkeypatch.setattr(type(server.engine), "alive", property(_broken))
    for path in PROBES:
        server.http.get(path)
    monkeypatch.undo()
    monkeypatch.setattr(LimitHead, "_too_large", _broken)
    all_routes(server, data, artifact, ROOT)
    monkeypatch.undo()


def _broken(*arguments):
    raise RuntimeError("on purpose")


def test_everything_documented_happens(
    make_server: MakeServer,
    heads,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    data, artifact = heads
    caplog.set_level("CRITICAL")  # failures on purpose are not worth a log
    server = make_server(**KEYS, artifacts=tmp_path, max_artifact_bytes=4096, allow_image_urls=True)
    slow = make_server(
        **KEYS,
        engine=FakeEngine(stall_after=0),
        body_timeout=0.1,
        upload_timeout=0.1,
        request_timeout=0.1,
    )
    good_requests(server, data, artifact)
    bad_requests(server, data, artifact)
    all_routes(server, data, artifact, {})
    late_requests(slow, artifact)
    for path in GENERATING:
        slow.http.post(path, json=POSTS[path], headers=USER)
    slow_preparation(slow, monkeypatch)
    in_trouble(server, data, artifact, monkeypatch)
    seen = server.documented.answered | slow.documented.answered
    assert documented(server) - seen == set()
    assert seen - documented(server) == set()


def test_keys_are_asked_for_where_they_are_needed(make_server: MakeServer):
    def security(server):
        paths = server.app.openapi()["paths"]
        return {
            f"{method} {path}": operation.get("security")
            for path, item in paths.items()
            for method, operation in item.items()
        }

    bound, free = security(make_server(**KEYS)), security(make_server())
    either = [{"apiKey": []}, {"adminKey": []}]
    for name, found in bound.items():
        probe = name.split()[1] in PROBES
        expected = [] if probe else [{"adminKey": []}] if name in ADMINS else either
        assert found == expected, name
    assert {name for name, found in free.items() if found} == ADMINS


def test_examples_are_served(server: Server):
    document = server.app.openapi()
    sent = 0
    for path, item in document["paths"].items():
        for operation in item.values():
            content = operation.get("requestBody", {}).get("content", {})
            for example in content.get("application/json", {}).get("examples", {}).values():
                answer = server.http.post(path, json=example["value"])
                assert answer.status_code == 200, answer.text
                sent += 1
    assert sent >= 6


def test_every_reference_leads_somewhere(server: Server):
    document = server.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    references = {piece.split('"')[0] for piece in json.dumps(document).split("/schemas/")[1:]}
    assert references <= set(schemas)
    assert all(name.isidentifier() for name in schemas)
    assert "HTTPValidationError" not in schemas


def test_hosts_are_documented_where_they_are_checked(server: Server, make_server: MakeServer):
    def with_421(server):
        return {path for _, path, status in documented(server) if status == 421}

    assert with_421(server) == {path for _, path, _ in documented(server)} - set(PROBES)
    assert not with_421(make_server(api_keys=("user",)))
    assert not with_421(make_server(allowed_hosts=("*",)))
    server.http.get("/v1/models", headers={"host": "evil.example"})
    assert ("GET", "/v1/models", 421) in server.documented.answered


def test_schemas_say_what_bodies_may_be(server: Server):
    def field(model, name):
        return schemas[model]["properties"][name]

    schemas = server.app.openapi()["components"]["schemas"]
    assert '"ge"' not in json.dumps(schemas), "pydantic's own name of a bound"
    most, _ = field("ChatRequest", "n")["anyOf"]
    assert most == {"type": "integer", "minimum": 1}
    number, false, null = field("ChatRequest", "prompt_logprobs")["anyOf"]
    assert (number["minimum"], number["maximum"]) == (0, 20)
    assert (false, null) == ({"const": False}, {"type": "null"})
    biases, _ = field("ChatRequest", "logit_bias")["anyOf"]
    assert (*biases["patternProperties"], biases["additionalProperties"]) == (
        "^[0-9]{1,10}$",
        False,
    )
    assert field("ChatRequest", "interventions")["anyOf"][0]["items"]["required"] == ["method"]
    assert field("LogitLens", "top")["anyOf"][0]["minimum"] == 1
    assert {"type": "null"} in field("LogitLens", "rows")["anyOf"]
    assert field("ChatMessage", "tool_call_id")["anyOf"][0] == {"type": "string", "maxLength": 256}
    for item in server.app.openapi()["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                digest = parameter["name"] == "digest"
                assert parameter["schema"].get("pattern") == ("^[0-9a-f]{64}$" if digest else None)
