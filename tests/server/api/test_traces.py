"""Traces through HTTP: what is refused, what comes back, and in which form."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from saccade_server.api.traces import work
from saccade_testing.api.bodies import parse_events
from saccade_testing.api.server import MakeServer, Server, wait_for

PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
}
LINKED = {"entropy": True, "delivery": "link"}


def traces(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [choice["trace"] for choice in answer.json()["choices"]]


def trace_of(server: Server, **fields: Any) -> dict[str, Any]:
    (found,) = traces(server.chat(**fields))
    return found


def array(entry: dict[str, Any]) -> Any:
    kind = np.dtype(entry["dtype"])
    data = entry["data"]
    if isinstance(data, str):
        found = np.frombuffer(base64.b64decode(data), kind).reshape(entry["shape"])
    else:
        found = np.asarray(data, kind)
    assert list(found.shape) == entry["shape"]
    assert len(entry["axes"]) == found.ndim
    for axis, coordinates in entry["coordinates"].items():
        assert len(coordinates) == found.shape[entry["axes"].index(axis)]
    return found


def test_entropy_of_each_token(server: Server):
    found = trace_of(server, trace={"entropy": True}, max_tokens=4)
    start = found["prompt_tokens"] - 1
    entry = found["arrays"]["entropy"]
    assert entry["axes"] == ["row"]
    assert entry["coordinates"] == {"row": list(range(start, start + 4))}
    assert (entry["unit"], entry["mean_over"]) == ("nats", {})
    assert np.array_equal(array(entry), np.arange(start, start + 4))
    assert found["bytes"] == 16
    assert found["question"] == [0, start + 1]
    assert found["images"] == []


def test_the_end_token_has_a_row(server: Server):
    found = trace_of(server, trace={"entropy": True})
    assert len(array(found["arrays"]["entropy"])) == len(server.engine.answer) + 1


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_has_it_in_the_last_chunk_of_each_choice(server: Server, path):
    body = PATHS[path] | {"trace": {"entropy": True}, "max_tokens": 3, "n": 3}
    whole = traces(server.http.post(path, json=body))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, end = parse_events(server.http.post(path, json=body | options).text)
    assert end == "[DONE]"
    told = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [c["index"] for c in told if "trace" in c] == [
        c["index"] for c in told if c["finish_reason"]
    ]
    assert [c["trace"] for c in sorted(told, key=lambda c: c["index"]) if "trace" in c] == whole
    assert len(whole) == 3


def test_every_prompt_has_its_own(server: Server):
    body = {"prompt": ["ab", "abcd"], "trace": {"entropy": True}, "max_tokens": 2, "n": 2}
    found = traces(server.http.post("/v1/completions", json=body))
    assert [each["prompt_tokens"] for each in found] == [2, 2, 4, 4]
    assert [each["arrays"]["entropy"]["data"] for each in found] == [[1, 2]] * 2 + [[3, 4]] * 2


def test_a_link_leads_to_the_same_numbers(server: Server):
    inline = trace_of(server, trace={"entropy": True, "delivery": "inline"}, max_tokens=5)
    linked = trace_of(server, trace=LINKED, max_tokens=5)
    link = linked.pop("link")
    data = inline["arrays"]["entropy"].pop("data")
    assert linked == inline
    answer = server.http.get(link)
    assert answer.status_code == 200
    digest = hashlib.sha256(answer.content).hexdigest()
    assert link == f"/v1/traces/{digest}"
    assert answer.headers["etag"] == f'"{digest}"'
    named = f'attachment; filename="trace-{digest[:16]}.safetensors"'
    assert answer.headers["content-disposition"] == named
    assert np.array_equal(load(answer.content)["entropy"], data)
    header = json.loads(answer.content[8 : 8 + int.from_bytes(answer.content[:8], "little")])
    assert json.loads(header["__metadata__"]["trace"]) == inline
    head = server.http.head(link)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == answer.headers["content-length"]


def test_equal_traces_have_one_link(server: Server):
    body = {"prompt": "Hi", "trace": LINKED, "max_tokens": 4, "n": 2}
    one, other = traces(server.http.post("/v1/completions", json=body))
    assert one["link"] == other["link"]


def test_a_text_of_numbers(server: Server):
    plain = trace_of(server, trace={"entropy": True}, max_tokens=5)["arrays"]["entropy"]
    coded = trace_of(server, trace={"entropy": True, "encoding": "base64"}, max_tokens=5)
    assert isinstance(coded["arrays"]["entropy"]["data"], str)
    assert np.array_equal(array(coded["arrays"]["entropy"]), array(plain))


def test_what_asks_for_nothing_gives_nothing(server: Server):
    for trace in (None, {}, {"entropy": False}, {"entropy": None, "encoding": "base64"}):
        answer = server.chat(trace=trace)
        assert "trace" not in answer.json()["choices"][0]
        assert server.engine.requests[-1].trace is None
        assert "x-saccade-ignored-fields" not in answer.headers


@pytest.mark.parametrize(
    ("trace", "param"),
    [
        (True, "trace"),
        ([], "trace"),
        ("entropy", "trace"),
        ({"entropies": True}, "trace.entropies"),
        ({"entropy": 1}, "trace.entropy"),
        ({"entropy": "true"}, "trace.entropy"),
        ({"entropy": []}, "trace.entropy"),
        ({"entropy": {"row": "all"}}, "trace.entropy.row"),
        ({"entropy": {"layers": []}}, "trace.entropy.layers"),
        ({"entropy": {"layers": [0, 0]}}, "trace.entropy.layers"),
        ({"entropy": {"layers": [0.5]}}, "trace.entropy.layers[0]"),
        ({"entropy": {"layers": [-1]}}, "trace.entropy.layers[0]"),
        ({"entropy": {"layers": [1, 5]}}, "trace.entropy.layers[1]"),
        ({"entropy": {"rows": "some"}}, "trace.entropy.rows"),
        ({"entropy": {"rows": 3}}, "trace.entropy.rows"),
        ({"entropy": {"rows": {}}}, "trace.entropy.rows"),
        ({"entropy": {"rows": {"answer": [0, 1], "prompt": [0, 1]}}}, "trace.entropy.rows"),
        ({"entropy": {"rows": {"answer": [2, 1]}}}, "trace.entropy.rows.answer"),
        ({"entropy": {"rows": {"answer": [1, 1]}}}, "trace.entropy.rows.answer"),
        ({"entropy": {"rows": {"answer": [0, 9]}}}, "trace.entropy.rows.answer[1]"),
        ({"entropy": {"rows": {"answer": [0, 1, 2]}}}, "trace.entropy.rows.answer"),
        ({"entropy": {"rows": {"answer": [-1, 1]}}}, "trace.entropy.rows.answer[0]"),
        ({"entropy": {"rows": {"prompt": [0, 400]}}}, "trace.entropy.rows.prompt[1]"),
        ({"entropy": True, "max_bytes": 0}, "trace.max_bytes"),
        ({"entropy": True, "max_bytes": "1"}, "trace.max_bytes"),
        ({"entropy": True, "encoding": "hex"}, "trace.encoding"),
        ({"entropy": True, "delivery": "mail"}, "trace.delivery"),
        ({"projections": True}, "trace.projections"),
        ({"projections": {}}, "trace.projections"),
        ({"masses": {"reduce": ["row"]}}, "trace.masses.reduce[0]"),
        ({"masses": {"reduce": ["head", "head"]}}, "trace.masses.reduce"),
        ({"masses": {"tau": 0}}, "trace.masses.tau"),
        ({"attention": {"keys": [[3, 1]]}}, "trace.attention.keys[0]"),
        ({"attention": {"keys": [[3, 5], [4, 6]]}}, "trace.attention.keys"),
        ({"attention": {"keys": []}}, "trace.attention.keys"),
        ({"attention": {"keys": "some"}}, "trace.attention.keys"),
        ({"heatmaps": {"images": [0, 0]}}, "trace.heatmaps.images"),
        ({"heatmaps": {"sinks": True}}, "trace.heatmaps.sinks"),
        ({"logit_lens": {"top": 0}}, "trace.logit_lens.top"),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_mistakes_are_named(server: Server, path, trace, param):
    answer = server.http.post(path, json=PATHS[path] | {"trace": trace, "max_tokens": 8})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param, answer.text
    assert not server.engine.requests


@pytest.mark.parametrize("name", ["traces", "Tracing", "trace-options", "output_attentions"])
def test_near_misses_are_refused(server: Server, name):
    error = server.chat(**{name: {"entropy": True}}).json()["error"]
    assert (error["code"], error["param"]) == ("unknown_field", name)
    assert '"trace"' in error["message"]
    assert server.chat(**{name: None}).status_code == 200


def test_more_than_the_request_allows_is_refused(server: Server):
    body = {"prompt": ["ab", "cd"], "n": 2, "max_tokens": 8}
    kind = {"entropy": {"layers": [0, 2]}}
    needed = 4 * 8 * 2 * 4
    sent = {"trace": kind | {"max_bytes": needed}}
    assert len(traces(server.http.post("/v1/completions", json=body | sent))) == 4
    sent = {"trace": kind | {"max_bytes": needed - 1}}
    answer = server.http.post("/v1/completions", json=body | sent)
    error = answer.json()["error"]
    assert answer.status_code == 413
    assert (error["code"], error["param"]) == ("trace_too_large", "trace.max_bytes")
    assert f"{needed} bytes" in error["message"]
    assert "max_tokens" in error["message"]
    assert "fewer layers" in error["message"]


def test_more_than_the_server_allows_is_refused(make_server: MakeServer):
    server = make_server(max_trace_bytes=40)
    assert server.chat(trace={"entropy": True}, max_tokens=10).status_code == 200
    answer = server.chat(trace={"entropy": True}, max_tokens=11)
    assert answer.status_code == 413
    assert "this server allows 40" in answer.json()["error"]["message"]
    # Without max_tokens the answer may be as long as there is room.
    assert server.chat(trace={"entropy": True}).status_code == 413
    rows = {"answer": [0, 10]}
    assert server.chat(trace={"entropy": {"rows": rows}}).status_code == 200


def test_traces_of_all_requests_have_one_budget(make_server: MakeServer):
    server = make_server(max_traces_bytes=100)
    for stream in (False, True):  # what was taken is put back
        for _ in range(3):
            assert server.chat(trace={"entropy": True}, max_tokens=25, stream=stream).is_success
        answer = server.chat(trace={"entropy": True}, max_tokens=26, stream=stream)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
    assert server.chat(trace={"entropy": True, "max_bytes": 1}, max_tokens=9).status_code == 413
    assert server.chat(trace={"entropy": True}, max_tokens=25).is_success


def test_rows_of_the_prompt(server: Server):
    rows = {"prompt": [2, 5]}
    entry = trace_of(server, trace={"entropy": {"rows": rows}})["arrays"]["entropy"]
    assert entry["coordinates"]["row"] == [2, 3, 4]
    assert entry["data"] == [2, 3, 4]
    found = trace_of(server, trace={"entropy": {"rows": "prompt"}})
    assert found["arrays"]["entropy"]["data"] == list(range(found["prompt_tokens"]))
    found = trace_of(server, trace={"entropy": {"rows": "all"}}, max_tokens=3)
    assert found["arrays"]["entropy"]["data"] == list(range(found["prompt_tokens"] + 2))


def test_without_a_token_of_an_answer(server: Server):
    body = PATHS["/v1/completions"] | {"max_tokens": 0, "echo": True, "logprobs": 0}
    answer = server.http.post("/v1/completions", json=body | {"trace": {"entropy": True}})
    assert answer.json()["error"]["param"] == "trace.entropy.rows"
    for rows in ("prompt", "all", {"prompt": [0, 2]}):
        kind = {"trace": {"entropy": {"rows": rows}}}
        (found,) = traces(server.http.post("/v1/completions", json=body | kind))
        assert found["arrays"]["entropy"]["data"] == [0, 1]


def test_rows_that_an_answer_does_not_reach(server: Server):
    ends = len(server.engine.answer) + 1  # with the token that ends it
    rows = {"answer": [ends - 1, ends + 4]}
    assert (
        len(trace_of(server, trace={"entropy": {"rows": rows}})["arrays"]["entropy"]["data"]) == 1
    )
    rows = {"answer": [ends, ends + 4]}
    kinds = {"entropy": {"rows": rows}, "columns": {"rows": rows, "layers": [0]}}
    found = trace_of(server, trace=kinds)
    entry = found["arrays"]["entropy"]
    assert (entry["shape"], entry["data"], entry["coordinates"]["row"]) == ([0], [], [])
    assert array(found["arrays"]["columns"]).tolist() == [[0] * found["prompt_tokens"]]


def test_a_stop_text_cuts_the_rows(server: Server):
    server.engine.delay = 0.01
    kinds = {"entropy": True, "columns": {"layers": [0], "rows": "all"}}
    found = trace_of(server, trace=kinds, stop="lo")
    assert len(found["arrays"]["entropy"]["data"]) == 5
    rows = np.arange(found["prompt_tokens"] + 4)
    assert np.isclose(array(found["arrays"]["columns"])[0, 0], rows.sum())


def test_a_trace_that_is_not_whole_fails(server: Server, caplog: pytest.LogCaptureFixture):
    server.engine.loses_traces = True
    answer = server.chat(trace={"entropy": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failure")
    *_, error, end = server.events(trace={"entropy": True})
    assert (error["error"]["code"], end) == ("engine_failure", "[DONE]")
    assert "a trace is not whole" in caplog.text
    assert server.chat().status_code == 200


def test_links_are_behind_the_key(make_server: MakeServer):
    server = make_server(api_keys=("user",))
    key = {"authorization": "Bearer user"}
    body = PATHS["/v1/completions"] | {"trace": LINKED}
    (found,) = traces(server.http.post("/v1/completions", json=body, headers=key))
    assert server.http.get(found["link"]).status_code == 401
    assert server.http.get(found["link"], headers=key).status_code == 200


@pytest.mark.parametrize("name", ["0" * 64, "x", "..%2f..%2fetc%2fpasswd", "A" * 64, "%00"])
def test_what_is_not_there(server: Server, name):
    answer = server.http.get(f"/v1/traces/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("trace_not_found", "not_found")


def test_replicas_share_a_folder(make_server: MakeServer, tmp_path: Path):
    one, other = make_server(traces=tmp_path), make_server(traces=tmp_path)
    link = trace_of(one, trace=LINKED)["link"]
    assert other.http.get(link).content == one.http.get(link).content
    assert trace_of(other, trace=LINKED)["link"] == link
    (tmp_path / (link.rpartition("/")[2] + ".safetensors")).write_bytes(b"changed")
    assert one.http.get(link).status_code == other.http.get(link).status_code == 404
    assert trace_of(one, trace=LINKED)["link"] == link
    assert other.http.get(link).status_code == 200


def test_a_folder_that_cannot_be_written_to(make_server: MakeServer, tmp_path: Path, caplog):
    folder = tmp_path / "traces"
    server = make_server(traces=folder)
    folder.rmdir()
    folder.write_text("no folder")
    found = trace_of(server, trace=LINKED, max_tokens=3)
    assert "link" not in found
    assert len(array(found["arrays"]["entropy"])) == 3
    assert "could not be kept" in caplog.text


def test_the_oldest_leave(make_server: MakeServer, tmp_path: Path):
    server = make_server(traces=tmp_path)
    size = len(server.http.get(trace_of(server, trace=LINKED, max_tokens=8)["link"]).content)
    small = make_server(traces=tmp_path, max_stored_traces_bytes=size + 100)
    links = [trace_of(small, trace=LINKED, max_tokens=count)["link"] for count in (2, 3)]
    assert [small.http.get(link).status_code for link in links] == [404, 200]
    assert len(list(tmp_path.iterdir())) == 1


def test_large_traces_are_behind_links_by_themselves(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(work, "INLINE_BYTES", 16)
    assert "link" not in trace_of(server, trace={"entropy": True}, max_tokens=4)
    assert "link" in trace_of(server, trace={"entropy": True}, max_tokens=5)
    inline = {"entropy": True, "delivery": "inline"}
    assert "link" not in trace_of(server, trace=inline, max_tokens=5)


def test_a_client_that_leaves_frees_everything(server: Server):
    server.engine.stall_after = 3
    body = PATHS["/v1/chat/completions"] | {"trace": {"entropy": True}, "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_bytes())
    budget = server.app.state.services.traces
    wait_for(lambda: not server.engine.running and budget.taken == 0)
