"""What answers must be: every form of the request, and what answers say of it."""

import json
import logging
import threading
from typing import Any

import pytest
from msgspec.structs import replace

from saccade_server.api import structured
from saccade_server.api.metrics import names
from saccade_server.engine.request import Failure
from saccade_server.grammars.expressions import of_choices, of_regex
from saccade_server.grammars.json_schema import Layout, of_object, of_schema
from saccade_server.grammars.languages import of_grammar
from saccade_server.grammars.tags import Tag, of_tags
from saccade_testing.api.bodies import MODEL, parse_events
from saccade_testing.api.fakes import INFO, FakeEngine
from saccade_testing.api.server import MakeServer, Server, wait_for
from saccade_testing.api.structured import HI, NEWER, SCHEMA, TAGS, TEXT, outputs, schema_format

FREE = of_tags([Tag("<f>", SCHEMA, "</f>")], triggers=["<f"], required=False, repeated=True)
ONE = of_tags([Tag("<f>", SCHEMA, "</f>")], triggers=["<f"], required=True, repeated=True)
COMPACT, CLOSED = Layout(whitespace=None), Layout(closed=True)
LARK, EBNF = 'start: "a" | "b"', 'root ::= "a" | "b"'


FORMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "object": ({"response_format": {"type": "json_object"}}, "json_object", of_object()),
    "schema": ({"response_format": schema_format(SCHEMA)}, "json_schema", of_schema(SCHEMA)),
    "strict": (
        {"response_format": schema_format(SCHEMA, strict=True)},
        *("json_schema", of_schema(SCHEMA)),
    ),
    "not-strict": (
        {"response_format": schema_format(SCHEMA, strict=False, description="d")},
        *("json_schema", of_schema(SCHEMA)),
    ),
    "tags": ({"response_format": TAGS}, "structural_tag", FREE),
    "newer-tags": ({"response_format": NEWER}, "structural_tag", ONE),
    "json": (outputs(json=SCHEMA), "json_schema", of_schema(SCHEMA)),
    "json-text": (outputs(json=TEXT), "json_schema", of_schema(SCHEMA)),
    "compact": (
        outputs(json=SCHEMA, disable_any_whitespace=True),
        *("json_schema", of_schema(SCHEMA, COMPACT)),
    ),
    "closed": (
        outputs(json=SCHEMA, disable_additional_properties=True),
        *("json_schema", of_schema(SCHEMA, CLOSED)),
    ),
    "lark": (outputs(grammar=LARK), "grammar", of_grammar(LARK)),
    "ebnf": (outputs(grammar=EBNF), "grammar", of_grammar(EBNF)),
    "guided-grammar": ({"guided_grammar": LARK}, "grammar", of_grammar(LARK)),
    "spaces": (
        outputs(json_object=True, whitespace_pattern=" ?"),
        *("json_object", of_object(Layout(whitespace=" ?"))),
    ),
    "regex": (outputs(regex="[ab]+"), "regex", of_regex("[ab]+")),
    "choice": (outputs(choice=["a", "b c"]), "choice", of_choices(["a", "b c"])),
    "json-object": (outputs(json_object=True), "json_object", of_object()),
    "tag-text": (outputs(structural_tag=json.dumps(TAGS)), "structural_tag", FREE),
    "guided-json": ({"guided_json": SCHEMA}, "json_schema", of_schema(SCHEMA)),
    "guided-json-text": ({"guided_json": TEXT}, "json_schema", of_schema(SCHEMA)),
    "guided-regex": ({"guided_regex": "[ab]+"}, "regex", of_regex("[ab]+")),
    "guided-choice": ({"guided_choice": ["a"]}, "choice", of_choices(["a"])),
    "guided-json-object": ({"guided_json_object": True}, "json_object", of_object()),
    "guided-spaces": (
        {"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"},
        *("json_schema", of_schema(SCHEMA, Layout(whitespace=" ?"))),
    ),
    "structural-tag": ({"structural_tag": json.dumps(NEWER)}, "structural_tag", ONE),
}
"""Fields, the kind that receipts show, and the source that reaches the engine."""

NOTHING: list[dict[str, Any]] = [
    {"response_format": None},
    {"response_format": {"type": "text"}},
    {"structured_outputs": None},
    {"structured_outputs": {}},
    outputs(json=None, regex=None, choice=None, json_object=False, disable_any_whitespace=False),
    {"guided_json": {}, "guided_regex": "", "guided_choice": [], "guided_grammar": ""},
    {"guided_json": None, "guided_json_object": False, "guided_whitespace_pattern": ""},
    {"structural_tag": ""},
]


@pytest.mark.parametrize("name", FORMS)
def test_each_form_reaches_the_engine(server: Server, name: str) -> None:
    fields, kind, source = FORMS[name]
    answer = server.chat(**fields)
    assert answer.status_code == 200, answer.text
    (asked,) = server.engine.requests
    assert (asked.grammar.kind, asked.grammar.source) == (kind, source)
    assert answer.json()["choices"][0]["structured_output"]["kind"] == kind


@pytest.mark.parametrize("fields", NOTHING, ids=str)
def test_nothing_is_asked_for(server: Server, fields: dict[str, Any]) -> None:
    answer = server.chat(**fields)
    assert server.engine.requests[0].grammar is None
    assert "structured_output" not in answer.json()["choices"][0]
    assert "x-saccade-ignored-fields" not in answer.headers


def test_each_prompt_and_each_copy_has_its_own(server: Server) -> None:
    body = {"model": MODEL, "prompt": ["a", "b"], "n": 2, "max_tokens": 5, **outputs(regex="H.*")}
    answer = server.http.post("/v1/completions", json=body)
    assert [request.grammar.kind for request in server.engine.requests] == ["regex"] * 4
    found = [choice["structured_output"] for choice in answer.json()["choices"]]
    assert (
        found
        == [{"kind": "regex", "constrained_tokens": 5, "forced_tokens": 2, "complete": False}] * 4
    )


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_ends_with_the_receipt(server: Server, path: str) -> None:
    said = (
        {"prompt": "a"}
        if path == "/v1/completions"
        else {"messages": [{"role": "user", "content": "a"}]}
    )
    body = {"model": MODEL, "stream": True, "n": 2, "max_tokens": 50, **said}
    answer = server.http.post(path, json=body | {"response_format": {"type": "json_object"}})
    choices = [e["choices"][0] for e in parse_events(answer.text)[:-1] if e["choices"]]  # type: ignore[index]
    ends = [choice for choice in choices if "structured_output" in choice]
    assert [choice["finish_reason"] for choice in ends] == ["stop"] * 2
    assert ends == [choice for choice in choices if choice["finish_reason"]]
    for choice in ends:
        assert choice["structured_output"] == {
            "kind": "json_object",
            "constrained_tokens": 14,
            "forced_tokens": 7,
            "complete": True,
        }


def test_what_a_stop_text_cuts_off_is_not_complete(server: Server) -> None:
    """And what the engine has drawn behind it is in no count."""
    answer = server.chat(stop="wor", **outputs(regex=".*")).json()
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "Hello, "
    assert answer["usage"]["completion_tokens"] == 10
    assert choice["structured_output"] == {
        "kind": "regex", "constrained_tokens": 9, "forced_tokens": 3, "complete": False,
    }  # fmt: skip


def test_interventions_and_logprobs_beside_it(server: Server) -> None:
    more = {"interventions": [{"method": "pasta", "highlight": ["i"], "layers": [0]}]}
    answer = server.chat(logprobs=True, logit_bias={"5": 1}, **outputs(regex=".*"), **more).json()
    assert answer["choices"][0]["structured_output"]["kind"] == "regex"
    assert len(answer["choices"][0]["logprobs"]["content"]) == 13
    assert answer["interventions_applied"][0]["status"] == "applied"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", Failure)
def test_a_grammar_that_fails_on_the_way(
    make_server: MakeServer, caplog: pytest.LogCaptureFixture, failure: Failure, stream: bool
) -> None:
    server = make_server()
    server.engine.fail_after, server.engine.failure = 3, failure
    fields = {"response_format": {"type": "json_object"}, "min_tokens": 1}
    if stream:
        events: list[Any] = server.events(**fields)
        error = next(event["error"] for event in events if "error" in event)
    else:
        answer = server.chat(**fields)
        assert answer.status_code == 400
        error = answer.json()["error"]
    at = "min_tokens" if failure is Failure.GRAMMAR_STUCK else "response_format"
    assert (error["code"], error["param"]) == (failure.value, at)
    assert error["message"] == "It cannot go on."
    assert not [line for line in caplog.records if line.levelno >= logging.WARNING]


def test_a_model_whose_tokens_are_no_bytes(make_server: MakeServer) -> None:
    engine = FakeEngine(info=replace(INFO, follows_grammars=False))
    server = make_server(engine)
    for fields in (outputs(regex="a"), {"response_format": {"type": "json_object"}}):
        error = server.chat(**fields).json()["error"]
        assert error["code"] == "unsupported_parameter"
    assert not engine.requests
    assert server.http.get("/v1/models").json()["data"][0]["structured_outputs"] == []


def test_an_engine_that_held_nothing_is_told(make_server: MakeServer) -> None:
    server = make_server()
    server.engine.holds = False
    answer = server.chat(response_format={"type": "json_object"})
    assert answer.json()["error"]["code"] == "engine_failure"


def test_a_grammar_is_checked_once(make_server: MakeServer) -> None:
    server = make_server()
    checks = server.app.state.services.tally.histograms[names.GRAMMAR_CHECKS]
    for fields in (outputs(regex="ab"), outputs(regex="(a")):
        before = sum(checks.counts)
        answers = [server.chat(**fields) for _ in range(3)]
        assert sum(checks.counts) == before + 1
        assert len({answer.status_code for answer in answers}) == 1
        assert answers[0].json().get("error") == answers[2].json().get("error")


def test_others_do_not_wait_behind_hostile_grammars(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server()
    go, waiting = threading.Event(), []

    def slow(expression: str) -> str:
        waiting.append(expression)
        assert go.wait(10)
        return of_regex(expression)

    monkeypatch.setattr(structured, "of_regex", slow)
    threads = [
        threading.Thread(target=server.chat, kwargs=outputs(regex=f"a{at}")) for at in range(8)
    ]
    for thread in threads:
        thread.start()
    workers = server.settings.grammar_workers
    wait_for(lambda: len(waiting) == workers)
    assert server.chat().status_code == 200
    assert len(waiting) == workers
    go.set()
    for thread in threads:
        thread.join()
    assert len(server.engine.requests) == 9


def test_metrics_and_models_know_of_it(make_server: MakeServer) -> None:
    server = make_server()
    server.chat(n=2, **outputs(regex="ab"))
    server.chat(**outputs(regex="(a"))
    said = server.http.get("/metrics").text
    for line in (
        'grammar_requests_total{kind="regex",model_name="saccade-test"} 1.0',
        'grammar_constrained_tokens_total{kind="regex",model_name="saccade-test"} 28.0',
        'grammar_forced_tokens_total{kind="regex",model_name="saccade-test"} 14.0',
        'grammar_refusals_total{code="invalid_grammar",kind="regex",model_name="saccade-test"} 1.0',
        'grammar_check_seconds_count{model_name="saccade-test"} 2.0',
    ):
        assert f"saccade:{line}" in said
    (card,) = server.http.get("/v1/models").json()["data"]
    assert "json_schema" in card["structured_outputs"]
    assert card["batch_invariant"] is False


@pytest.mark.parametrize("path", ["/v1/score", "/v1/interventions/validate"])
def test_what_draws_nothing_has_no_such_fields(server: Server, path: str) -> None:
    said = {"messages": HI}
    more = {"continuations": ["a"]} if path == "/v1/score" else {"interventions": []}
    answer = server.http.post(path, json=said | more | outputs(regex="a"))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "structured_outputs"


FORMS_OF_ALL = ("response_format", "structured_outputs", "guided_json", "structural_tag")


@pytest.mark.parametrize("name", FORMS_OF_ALL)
@pytest.mark.parametrize(
    "given", [{"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}]
)
def test_tokenize_names_it_as_ignored(server: Server, name: str, given: dict[str, Any]) -> None:
    answer = server.http.post("/tokenize", json=given | {name: {"type": "json_object"}})
    assert answer.headers["x-saccade-ignored-fields"] == name
