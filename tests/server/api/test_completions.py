"""Plain completions over a real socket."""

import pytest

from saccade_testing.api.bodies import MODEL, parse_events
from saccade_testing.api.server import Server


def post(server, **fields):
    return server.http.post("/v1/completions", json={"model": MODEL} | fields)


def test_a_prompt_is_continued(server: Server):
    reply = server.openai().completions.create(model=MODEL, prompt="Say", max_tokens=5)
    assert reply.object == "text_completion"
    assert reply.choices[0].text == "Hello"
    assert reply.choices[0].finish_reason == "length"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 5)


def test_a_stream_says_the_same(server: Server):
    chunks = list(
        server.openai().completions.create(
            model=MODEL,
            prompt="Say",
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "Hello, world!"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 3 + 14


def test_several_prompts_have_their_answers_in_order(server: Server):
    body = post(server, prompt=["a", "bc"], n=2, max_tokens=2).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == 8
    prompts = sorted(bytes(request.tokens) for request in server.engine.requests)
    assert prompts == [b"a", b"a", b"bc", b"bc"]


def test_tokens_are_taken_as_they_are(server: Server):
    assert post(server, prompt=[1, 2, 257]).status_code == 200
    assert server.engine.requests[0].tokens == (1, 2, 257)


def test_log_probabilities(server: Server):
    body = post(server, prompt="x", logprobs=1, max_tokens=3).json()
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["H", "e", "l"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [{"H": -0.5, "A": -1.0}, {"e": -0.5, "A": -1.0}, {"l": -0.5, "A": -1.0}],
        "text_offset": [0, 1, 2],
    }


def test_offsets_continue_through_a_stream(server: Server):
    response = post(server, prompt="x", logprobs=0, stream=True)
    events = parse_events(response.text)[:-1]
    offsets = [at for event in events for at in event["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == list(range(len("Hello, world!")))


def test_offsets_count_characters_of_the_text(server: Server):
    server.engine.answer = "aé🙂b"
    body = post(server, prompt="x", logprobs=0).json()
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 2, 2, 2, 3]


def test_sixteen_tokens_unless_asked_for_more(server: Server):
    server.engine.answer = "x" * 100
    assert post(server, prompt="x").json()["usage"]["completion_tokens"] == 16
    near_the_end = post(server, prompt="x" * 505).json()
    assert near_the_end["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_field", "prompt"),
        ({"prompt": ""}, None, "prompt"),
        ({"prompt": ["x", ""]}, None, "prompt[1]"),
        ({"prompt": ["x"] * 65}, None, "prompt"),
        ({"prompt": ["x"] * 8, "n": 9}, None, "n"),
        ({"prompt": [258]}, None, "prompt"),
        ({"prompt": [[1], [258]]}, None, "prompt[1]"),
        ({"prompt": [-1]}, None, "prompt[0]"),
        ({"prompt": "x" * 512}, "context_length_exceeded", "prompt"),
        ({"prompt": "x", "max_tokens": 512}, "context_length_exceeded", "max_tokens"),
        ({"prompt": "x", "suffix": "y"}, "unsupported_parameter", "suffix"),
        ({"prompt": "x", "best_of": 2}, "unsupported_parameter", "best_of"),
        (
            {"prompt": "x", "max_tokens": 3, "max_completion_tokens": 2},
            "invalid_value",
            "max_tokens",
        ),
        ({"prompt": "x", "logprobs": True}, None, "logprobs"),
        ({"prompt": "x", "logprobs": 21}, None, "logprobs"),
        ({"prompt": "x", "steering": []}, "intervention_unknown_field", "steering"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals(server: Server, fields, code, param):
    response = post(server, **fields)
    error = response.json()["error"]
    assert response.status_code == 400
    assert code in (None, error["code"])
    assert error["param"] == param
    assert not server.engine.requests


def test_interventions_apply_to_each_prompt(server: Server):
    entry = {"method": "pasta", "highlight": ["b"], "layers": [1]}
    response = post(server, prompt=["abc", "xb"], interventions=[entry], max_tokens=2)
    (applied,) = response.json()["interventions_applied"]
    assert applied["rows"] == {"prompt": 5, "generated": 2, "cached": 0}
    assert applied["status"] == "applied"
    first, second = (request.plan for request in server.engine.requests)
    assert (first.prompt_length, second.prompt_length) == (3, 2)


def test_a_prompt_that_does_not_suit_the_intervention(server: Server):
    entry = {"method": "pasta", "highlight": ["b"], "layers": [1]}
    response = post(server, prompt=["abc", "x"], interventions=[entry])
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "intervention_target_not_found"
    assert not server.engine.requests
