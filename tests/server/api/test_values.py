"""Values that are harmless, or that other servers take, and what becomes of them."""

import pytest

from saccade_testing.api.bodies import parse_events
from saccade_testing.api.server import Server

PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
}


@pytest.fixture(params=PATHS)
def post(server: Server, request):
    """Send fields to an endpoint that generates."""
    return lambda **fields: server.http.post(request.param, json=PATHS[request.param] | fields)


def text_of(answer):
    choice = answer.json()["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 4, "max_completion_tokens": 4},
        {"max_completion_tokens": 4},
        {"max_tokens": 4, "max_completion_tokens": None},
        {"max_tokens": 4, "max_new_tokens": 4},
        {"max_new_tokens": 4},
        {"max_tokens": 4.0},
    ],
)
def test_a_limit_has_three_names(server: Server, post, fields):
    assert post(**fields).json()["usage"]["completion_tokens"] == 4
    assert server.engine.requests[-1].sampling.max_tokens == 4


def test_a_limit_too_large_is_refused_by_its_name(post):
    for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
        error = post(**{name: 10_000}).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", name)


def test_limits_that_disagree_are_refused(post):
    error = post(max_completion_tokens=4, max_new_tokens=5).json()["error"]
    assert error["param"] == "max_completion_tokens"
    assert "max_new_tokens" in error["message"]


@pytest.mark.parametrize("name", ["max_tokens", "min_tokens", "n", "seed", "top_k"])
def test_a_whole_number_may_have_a_point_and_nothing_behind_it(post, name):
    assert post(**{name: 2.0}).status_code == 200
    for value in (2.5, True, "2", 1e300):
        assert post(**{name: value}).json()["error"]["param"] == name


def test_a_near_miss_that_asks_for_nothing_is_let_through(post):
    for fields in ({"extra_body": {}}, {"extra_body": None}, {"steering": None}):
        assert post(**fields).status_code == 200
    for value in ([], False, 0, {"a": 1}):  # an empty list would be an answer without a profile
        assert post(extra_body=value).status_code == 400


def test_top_p_0_reaches_the_engine(server: Server, post):
    assert post(top_p=0).status_code == 200
    assert server.engine.requests[-1].sampling.top_p == 0


def test_more_stop_texts_than_four(post):
    stops = [f"stop{index}" for index in range(60)]
    assert text_of(post(stop=[*stops, "wor"])) == "Hello, "
    assert post(stop=["x" * 1024] * 4).status_code == 200


def test_a_byte_order_mark_is_no_part_of_the_body(server: Server):
    for path, body in PATHS.items():
        sent = server.http.build_request("POST", path, json=body)
        marked = b"\xef\xbb\xbf" + sent.read()
        headers = {"content-type": "application/json"}
        assert server.http.post(path, content=marked, headers=headers).status_code == 200
        twice = server.http.post(path, content=b"\xef\xbb\xbf" + marked, headers=headers)
        assert twice.json()["error"]["code"] == "invalid_json"


def test_tools_that_may_not_be_called(server: Server):
    tools = [{"type": "function", "function": {"name": "f"}}]
    answer = server.chat(tools=tools, tool_choice="none")
    assert answer.status_code == 200
    assert answer.headers["x-saccade-ignored-fields"] == "tools"
    functions = [{"name": "f"}]
    assert server.chat(functions=functions, function_call="none").status_code == 200
    for choice in ({}, {"function_call": "auto"}, {"function_call": None}):
        error = server.chat(functions=functions, **choice).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "functions")
        assert error["message"].endswith("Give tools.")


@pytest.mark.parametrize("options", [{"include_usage": True}, {}])
def test_usage_in_every_chunk(server: Server, post, options):
    options = {**options, "continuous_usage_stats": True}
    answer = post(stream=True, stream_options=options, max_tokens=5)
    *chunks, end = parse_events(answer.text)
    assert end == "[DONE]"
    said = [chunk for chunk in chunks if chunk["choices"]]
    counts = [chunk["usage"]["completion_tokens"] for chunk in said]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) in ((0, 5), (1, 5))
    assert len(chunks) - len(said) == ("include_usage" in options)


def test_no_stop_text_ends_an_answer_before_min_tokens(server: Server, post):
    assert text_of(post(stop="l", min_tokens=3)) == "Hel"
    assert text_of(post(stop="l", min_tokens=4)) == "Hello, wor"
    assert text_of(post(stop="Hello", min_tokens=4)) == ""
    assert text_of(post(stop="Hello", min_tokens=5)) == "Hello, world!"
    assert server.engine.requests[-1].sampling.min_tokens == 5


def test_a_stop_text_that_is_a_special_token_is_that_token(server: Server, post):
    assert post(stop=["x", "<eos>", "<image>"], stop_token_ids=[5, 256]).status_code == 200
    assert server.engine.requests[-1].sampling.stop_token_ids == (5, 256, 257)


def test_min_tokens_fit_the_answer(server: Server, post):
    error = post(min_tokens=9, max_tokens=8).json()["error"]
    assert error["param"] == "min_tokens"
    assert post(min_tokens=8, max_tokens=8).status_code == 200
    assert post(min_tokens=None).status_code == 200
    assert post(min_tokens=20).status_code == 200  # beyond the completions' usual 16
    assert server.engine.requests[-1].sampling.max_tokens >= 20
    assert post(min_tokens=511).json()["error"]["param"] == "min_tokens"


def test_a_prompt_without_special_tokens(server: Server):
    texts = {"prompt": ["x", "y"], "add_special_tokens": True}
    assert server.http.post("/v1/completions", json=texts).status_code == 200
    for prompt in ([1, 2], [[1], [2]]):
        body = {"prompt": prompt, "add_special_tokens": True}
        error = server.http.post("/v1/completions", json=body).json()["error"]
        assert error["param"] == "add_special_tokens"
        body["add_special_tokens"] = False
        assert server.http.post("/v1/completions", json=body).status_code == 200
    body = {"prompt": "Hi"}
    for value, tokens in ((None, b"Hi"), (True, b"Hi"), (False, b"Hi\xff")):
        answer = server.http.post("/v1/completions", json=body | {"add_special_tokens": value})
        assert answer.status_code == 200
        assert bytes(server.engine.requests[-1].tokens) == tokens
