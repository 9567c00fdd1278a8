"""Scores, and log-probabilities of prompts."""

import httpx2
import pytest

import saccade_client as sdk
from saccade_testing.api.scored import fake_score
from saccade_testing.api.server import check_servers, start_server

SCORES = {
    "id": "score-1",
    "object": "score",
    "model": "m",
    "scores": [
        {
            **{"index": 0, "logprob": -3.5, "is_greedy": False, "token_count": 2},
            **{"tokens": ["a", "b"], "token_ids": [1, 2], "token_logprobs": [-3.0, -0.5]},
        },
        {
            **{"index": 1, "logprob": -0.25, "is_greedy": True, "token_count": 1},
            **{"tokens": ["c"], "token_ids": [3], "token_logprobs": [-0.25]},
        },
    ],
    "usage": {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}},
}


def answer(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json=SCORES)


def test_what_is_sent_and_what_comes_back(harness):
    found = harness.ask(
        answer,
        lambda client: client.score(
            ("ab", range(2)), prompt="x", model="m", interventions=["pai:alpha=0.5"], profile="p"
        ),
    )
    assert harness.bodies == [
        {
            "model": "m",
            "prompt": "x",
            "continuations": ["ab", [0, 1]],
            "interventions": [{"method": "pai", "alpha": 0.5}],
            "intervention_profile": "p",
        }
    ]
    assert harness.requests[0].url.path == "/v1/score"
    assert found.logprobs == [-3.5, -0.25]
    assert found.likeliest == 1
    assert found.scores[0].token_logprobs == [-3.0, -0.5]
    assert found.usage.prompt_tokens_details == {"cached_tokens": 3}
    assert found.interventions_applied == []


def test_messages_may_be_a_question_with_images(harness):
    harness.ask(
        answer,
        lambda client: client.score(["Yes"], messages="Is it?", images="http://a/b", model="m"),
    )
    (body,) = harness.bodies
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    assert "prompt" not in body


@pytest.mark.parametrize(
    "given",
    [
        {"continuations": ["x"]},
        {"continuations": ["x"], "prompt": "a", "messages": "b"},
        {"continuations": ["x"], "prompt": "a", "images": "http://a/b"},
        {"continuations": "x", "prompt": "a"},
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_is_sent(harness, given):
    with pytest.raises(sdk.InvalidInput):
        harness.ask(answer, lambda client: client.score(model="m", **given))
    with pytest.raises(TypeError, match="max_tokens"):
        harness.ask(answer, lambda client: client.score(["x"], prompt="a", max_tokens=1))
    assert not harness.requests


@pytest.fixture(scope="module")
def client():
    server = start_server(served_model_name="tiny")
    with sdk.Saccade(server.url) as client:
        yield client
    server.stop()
    check_servers()


def test_the_server_means_the_same(client):
    found = client.score(["cd", [101]], prompt="ab")
    assert [score.tokens for score in found.scores] == [["c", "d"], ["e"]]
    assert found.scores[1].token_logprobs == [fake_score(101)[0]]
    highlight = sdk.Intervention("pasta", highlight=["H"], layers=[1])
    found = client.score(["Yes"], messages="Hi", interventions=[highlight])
    assert [applied.status for applied in found.interventions_applied] == ["applied"]
    with pytest.raises(sdk.BadRequest) as caught:
        client.score(["x", ""], prompt="ab")
    assert caught.value.param == "continuations[1]"


def test_a_prompt_has_its_log_probabilities(client):
    reply = client.complete("ab", prompt_logprobs=1, echo=True, logprobs=1, max_tokens=0)
    (choice,) = reply.choices
    first, second = choice.prompt_logprobs
    assert first is None
    assert (second["98"].logprob, second["98"].rank) == fake_score(98)
    assert choice.logprobs.token_logprobs == [None, fake_score(98)[0]]
    whole = client.chat("Hi", prompt_logprobs=1, max_tokens=2)
    assert whole.prompt_logprobs[1]
    with client.stream_chat("Hi", prompt_logprobs=1, max_tokens=2) as stream:
        list(stream)
    assert stream.final.prompt_logprobs == whole.prompt_logprobs
    with client.stream_complete("ab", prompt_logprobs=1, echo=True, max_tokens=1) as stream:
        list(stream)
    assert stream.final.text == "abH"
    assert stream.final.choices[0].prompt_logprobs == choice.prompt_logprobs
