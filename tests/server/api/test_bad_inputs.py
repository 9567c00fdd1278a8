"""Everything a client can get wrong gets the right status and object, and harms nobody."""

import json

import pytest

from saccade_testing.api.bodies import PICTURE, chat_body, image_messages
from saccade_testing.api.server import Server

STATUS_TYPE = {401: "authentication_error", 503: "overloaded_error", 500: "server_error"}


def check(response, status, code=None, param=None):
    """The response is an OpenAI error object."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == STATUS_TYPE.get(status, "invalid_request_error")
    assert isinstance(error["code"], str)
    assert 0 < len(error["message"]) <= 1000
    assert code is None or error["code"] == code
    assert param is None or error["param"] == param
    return error


@pytest.fixture(autouse=True)
def unharmed(server: Server):
    """Whatever came before: the next request is answered, and nothing was left running."""
    yield
    assert server.chat().status_code == 200
    assert not server.engine.running


FIELDS = [
    ({"model": "gpt-9"}, 404, "model_not_found", "model"),
    ({"model": 5}, 400, None, "model"),
    ({"messages": []}, 400, None, "messages"),
    ({"messages": [{"role": "user", "content": "x"}] * 1025}, 400, None, "messages"),
    ({"temperature": -1}, 400, None, "temperature"),
    ({"temperature": 1e308}, 400, None, "temperature"),
    ({"temperature": "0.5"}, 400, None, "temperature"),
    ({"temperature": True}, 400, None, "temperature"),
    ({"top_p": -0.1}, 400, None, "top_p"),
    ({"top_p": 1.1}, 400, None, "top_p"),
    ({"top_k": -2}, 400, None, "top_k"),
    ({"min_p": 2}, 400, None, "min_p"),
    ({"repetition_penalty": 0}, 400, None, "repetition_penalty"),
    ({"presence_penalty": 3}, 400, None, "presence_penalty"),
    ({"n": 0}, 400, None, "n"),
    ({"n": -1}, 400, None, "n"),
    ({"n": 17}, 400, None, "n"),
    ({"n": 10**9}, 400, None, "n"),
    ({"max_tokens": 0}, 400, None, "max_tokens"),
    ({"max_tokens": -1}, 400, None, "max_tokens"),
    ({"max_tokens": 2**63}, 400, None, "max_tokens"),
    ({"max_tokens": 1.5}, 400, None, "max_tokens"),
    ({"max_tokens": 10_000}, 400, "context_length_exceeded", "max_tokens"),
    (
        {"max_completion_tokens": 10_000},
        400,
        "context_length_exceeded",
        "max_completion_tokens",
    ),
    ({"max_tokens": 5, "max_completion_tokens": 6}, 400, None, "max_tokens"),
    (
        {"messages": [{"role": "user", "content": "x" * 600}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
    ({"stop": ""}, 400, None, "stop"),
    ({"stop": ["a"] * 1000}, 400, None, "stop"),
    ({"stop": ["a", ""]}, 400, None, "stop[1]"),
    ({"stop": "x" * 100_000}, 400, None, "stop"),
    ({"stop": 5}, 400, None, "stop"),
    ({"stop_token_ids": [300]}, 400, None, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, 400, None, "stop_token_ids[0]"),
    ({"seed": 2**64}, 400, None, "seed"),
    ({"seed": 1.5}, 400, None, "seed"),
    ({"logit_bias": {"x": 1}}, 400, None, None),
    ({"logit_bias": {"300": 1}}, 400, None, "logit_bias"),
    ({"logit_bias": {"7": 1, "007": 2}}, 400, None, "logit_bias"),
    ({"logit_bias": {"5": 1e9}}, 400, None, "logit_bias.5"),
    ({"logit_bias": {str(i): 1 for i in range(20_000)}}, 400, None, "logit_bias"),
    ({"logit_bias": [1]}, 400, None, "logit_bias"),
    ({"logprobs": 5}, 400, None, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, 400, None, "top_logprobs"),
    ({"top_logprobs": 2}, 400, None, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, 400, None, "stream_options"),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        400,
        None,
        "stream_options.include_usage",
    ),
    ({"stream": "yes"}, 400, None, "stream"),
    ({"messages": [{"role": "function", "content": "x"}]}, 400, None, "messages[0].role"),
    (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        400,
        "missing_field",
        "messages[0].tool_calls[0].function",
    ),
    ({"stop": ["x" * 1024] * 5}, 400, None, "stop"),
    ({"stop": ["x"] * 65}, 400, None, "stop"),
    ({"min_tokens": -1}, 400, None, "min_tokens"),
    ({"min_tokens": 9, "max_tokens": 8}, 400, None, "min_tokens"),
]

UNSUPPORTED = {
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "x"},
    "prediction": {"type": "content"},
    "web_search_options": {"user_location": None},
    "reasoning_effort": "high",
    "chat_template": "{{ x }}",
    "enable_thinking": True,
    "truncate_prompt_tokens": 5,
    "bad_words": ["x"],
    "echo": True,
    "length_penalty": True,
    "add_special_tokens": True,
    "cache_salt": "x",
    "return_tokens_as_token_ids": True,
    "regex": "x+",
    "json_schema": "{}",
    "ebnf": "x",
    "lora_path": "x",
    "custom_logit_processor": "x",
    "typical_p": 0.5,
    "stop_regex": "x",
    "no_stop_trim": True,
    "thinking": {"type": "enabled"},
}

NEAR_MISSES = [
    "intervention",
    "Interventions",
    "interventons",
    "intervensions",
    "attention_interventions",
    "steering",
    "controller",
    "extra_body",
    "method",
]

HARMLESS = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": False,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "service_tier": "auto",
    "interventions": None,
    "stop": None,
    "temperature": None,
    "logit_bias": None,
    "some_future_field": {"x": 1},
    "length_penalty": 1.0,
    "add_special_tokens": False,
    "return_tokens_as_token_ids": False,
    "guided_json": None,
    "typical_p": 1.0,
}


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"), FIELDS, ids=lambda value: str(value)[:40]
)
def test_fields_of_a_chat(server: Server, fields, status, code, param):
    check(server.chat(**fields), status, code, param)
    assert not server.engine.requests


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_would_be_left_undone(server: Server, name):
    check(server.chat(**{name: UNSUPPORTED[name]}), 400, "unsupported_parameter", name)


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_nearly_interventions(server: Server, name):
    error = check(server.chat(**{name: [{"method": "var"}]}), 400, "intervention_unknown_field")
    assert '"interventions"' in error["message"]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_sdks_send(server: Server, name):
    assert server.chat(**{name: HARMLESS[name]}).status_code == 200


INTERVENTIONS = [
    ("var", "intervention_invalid_params", "interventions"),
    ({}, "intervention_invalid_params", "interventions"),
    ([5], "intervention_invalid_params", "interventions[0]"),
    ([{}], "intervention_invalid_params", "interventions[0].method"),
    ([{"method": "telepathy"}], "intervention_unknown_method", "interventions[0].method"),
    ([{"method": "pai", "strength": 1}], "intervention_unknown_field", "interventions[0].strength"),
    ([{"method": "pai", "alpha": "0.5"}], "intervention_invalid_params", "interventions[0].alpha"),
    ([{"method": "pai", "alpha": True}], "intervention_invalid_params", "interventions[0].alpha"),
    ([{"method": "pai", "alpha": -1}], "intervention_invalid_params", "interventions[0].alpha"),
    ([{"method": "pai", "alpha": 1e30}], "intervention_invalid_params", "interventions[0].alpha"),
    ([{"method": "pai", "version": "0"}], "intervention_version_mismatch", None),
    ([{"method": "pai", "layers": []}], "intervention_invalid_params", "interventions[0].layers"),
    ([{"method": "pai", "layers": [-1]}], "intervention_layer_out_of_range", None),
    (
        [{"method": "pai", "layers": [4]}],
        "intervention_layer_out_of_range",
        "interventions[0].layers[0]",
    ),
    (
        [{"method": "pai", "heads": [4]}],
        "intervention_head_out_of_range",
        "interventions[0].heads[0]",
    ),
    ([{"method": "pai", "image_index": 1}], None, "interventions[0].image_index"),
    ([{"method": "pai", "rows": "never"}], None, "interventions[0].rows"),
]


@pytest.mark.parametrize(
    ("value", "code", "param"), INTERVENTIONS, ids=lambda value: str(value)[:50]
)
def test_interventions(server: Server, value, code, param):
    messages = image_messages(PICTURE)
    check(server.chat(messages=messages, interventions=value), 400, code, param)
    assert not server.engine.requests


def test_an_image_method_without_an_image(server: Server):
    response = server.chat(interventions=[{"method": "pai"}])
    check(response, 400, "intervention_requires_image")


def test_too_many_interventions(server: Server):
    response = server.chat(interventions=[{"method": "pai"}] * 1000)
    check(response, 413, "intervention_spec_too_large", "interventions")


BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"[1]", 400),
    (b"12", 400),
    (b'{"messages": [], "messages": []}', 400),
    (b'{"temperature": NaN}', 400),
    (b'{"temperature": 1e999}', 400),
    (b"[" * 100_000, 400),
    (b'{"n": ' + b"1" * 100_000 + b"}", 400),
    (b'{"user": "\xff"}', 400),
    (b'{"user": "\\ud800"}', 400),
    (b"x" * 2_000_000, 413),
]


@pytest.mark.parametrize(("body", "status"), BODIES, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/interventions/validate"]
)
def test_bodies(server: Server, path, body, status):
    headers = {"content-type": "application/json"}
    check(server.http.post(path, content=body, headers=headers), status)


def test_text_may_hold_nul(server: Server):
    assert server.chat(messages=[{"role": "user", "content": "a\0b"}]).status_code == 200


def test_a_chunked_body_is_counted(server: Server):
    def pieces():
        for _ in range(30):
            yield b" " * 50_000

    headers = {"content-type": "application/json"}
    response = server.http.post("/v1/chat/completions", content=pieces(), headers=headers)
    check(response, 413, "request_too_large")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json; profile=x; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_other_media_types(server: Server, headers):
    body = json.dumps(chat_body()).encode()
    response = server.http.post("/v1/chat/completions", content=body, headers=headers)
    check(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/models/no-such", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("PUT", "/v1/interventions", 405),
    ],
)
def test_routes_and_methods(server: Server, method, path, status):
    response = server.http.request(method, path)
    check(response, status)
    assert response.headers["x-request-id"]


def test_head_of_a_post_route(server: Server):
    assert server.http.head("/v1/chat/completions").status_code == 405


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/live", "GET, HEAD"),
        (f"/v1/traces/{'0' * 64}", "GET, HEAD"),
        ("/v1/chat/completions", "POST"),
    ],
)
def test_a_refused_method_is_told_all_of_its_path(server: Server, path, methods):
    refused = server.http.request("DELETE", path)
    assert (refused.status_code, refused.headers.get_list("allow")) == (405, [methods])
