"""What an answer says of its prompt: echo, log-probabilities in two forms, nothing generated."""

import pytest

from saccade_server.api import prompt_scores
from saccade_server.api.logprobs import completion_logprobs
from saccade_server.requests.scores import TokenScore
from saccade_testing.api.bodies import MODEL, parse_events
from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.scored import fake_score
from saccade_testing.api.server import MakeServer, Server

HIGHLIGHT = {"method": "pasta", "highlight": ["b"], "layers": [1]}
GENERATED = {"method": "pasta", "highlight": ["b"], "layers": [1], "rows": "generated"}
LAST = {**GENERATED, "rows": "last"}


def post(server, **fields):
    return server.http.post("/v1/completions", json={"model": MODEL} | fields)


def choices(server, **fields):
    response = post(server, **fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def own(token: str) -> float:
    return fake_score(ord(token))[0]


def listed(text: str, most: int = 0) -> list:
    """The ``prompt_logprobs`` of a text."""
    found: list = [None]
    for token in text[1:]:
        logprob, rank = fake_score(ord(token))
        entry = {str(ord(token)): {"logprob": logprob, "rank": rank, "decoded_token": token}}
        for at in range(most):
            told = {"logprob": -1.0 - at, "rank": at + 1, "decoded_token": chr(65 + at)}
            entry.setdefault(str(65 + at), told)
        found.append(entry)
    return found


def test_an_echo_begins_with_the_prompt(server: Server):
    (choice,) = choices(server, prompt="abc", echo=True, max_tokens=3)
    assert (choice["text"], choice["logprobs"]) == ("abcHel", None)
    assert server.engine.requests[0].trace is None, "nothing is read that nobody sees"


def test_an_echo_has_log_probabilities_of_prompt_and_answer(server: Server):
    (choice,) = choices(server, prompt="abc", echo=True, logprobs=1, max_tokens=2)
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c", "H", "e"],
        "token_logprobs": [None, own("b"), own("c"), -0.5, -0.5],
        "top_logprobs": [
            None,
            {"b": own("b"), "A": -1.0},
            {"c": own("c"), "A": -1.0},
            {"H": -0.5, "A": -1.0},
            {"e": -0.5, "A": -1.0},
        ],
        "text_offset": [0, 1, 2, 3, 4],
    }


def test_without_rivals_each_token_has_itself(server: Server):
    (choice,) = choices(server, prompt="ab", echo=True, logprobs=0, max_tokens=0)
    assert choice["logprobs"]["top_logprobs"] == [None, {"b": own("b")}]


def test_of_tokens_with_one_text_the_likeliest_is_told():
    """Halves of characters all read the same."""

    class Halves:
        def token_text(self, token):
            return "\ufffd", bytes([token])

    entries = [TokenScore(7, -3.0, 3, ((5, -0.5), (6, -1.0))), TokenScore(5, -0.5, 1, ((5, -0.5),))]
    told = completion_logprobs(Halves(), entries, [0, 0])
    assert told["top_logprobs"] == [{"\ufffd": -0.5}, {"\ufffd": -0.5}]
    assert told["token_logprobs"] == [-3.0, -0.5]


def test_nothing_is_generated_where_nothing_is_asked_for(server: Server):
    for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
        response = post(server, prompt="abc", echo=True, logprobs=0, **{name: 0}).json()
        (choice,) = response["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
        assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
        assert response["usage"]["completion_tokens"] == 0
        assert response["usage"]["total_tokens"] == 3


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_new_tokens"])
def test_nothing_at_all_is_refused(server: Server, name):
    response = post(server, prompt="abc", **{name: 0})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == name
    chat = server.chat(**{name: 0})
    assert (chat.status_code, chat.json()["error"]["param"]) == (400, name)
    refused = post(server, prompt="abc", echo=True, min_tokens=1, **{name: 0})
    assert refused.json()["error"]["param"] == "min_tokens"
    assert not server.engine.requests


def test_a_prompt_s_log_probabilities_are_listed_by_token(server: Server):
    for most in (0, 2, 20):
        (choice,) = choices(server, prompt="abA", prompt_logprobs=most, max_tokens=1)
        assert choice["prompt_logprobs"] == listed("abA", most)
        assert (choice["text"], choice["logprobs"]) == ("H", None)
    (choice,) = choices(server, prompt="ab", prompt_logprobs=False, max_tokens=1)
    assert "prompt_logprobs" not in choice


def test_both_forms_go_together_each_with_as_many_rivals_as_it_says(server: Server):
    fields = {"echo": True, "logprobs": 1, "prompt_logprobs": 3, "max_tokens": 0}
    (choice,) = choices(server, prompt="ab", **fields)
    assert choice["prompt_logprobs"] == listed("ab", 3)
    assert choice["logprobs"]["top_logprobs"] == [None, {"b": own("b"), "A": -1.0}]


def test_a_prompt_of_one_token_has_one_that_nothing_predicts(server: Server):
    fields = {"echo": True, "logprobs": 1, "prompt_logprobs": 1, "max_tokens": 0}
    (choice,) = choices(server, prompt="a", **fields)
    assert choice["prompt_logprobs"] == [None]
    assert choice["logprobs"]["token_logprobs"] == [None]


def test_several_prompts_with_several_answers_each_have_their_own(server: Server):
    fields = {"n": 2, "echo": True, "logprobs": 0, "prompt_logprobs": 0, "max_tokens": 1}
    found = choices(server, prompt=["ab", "cde"], **fields)
    assert [choice["text"] for choice in found] == ["abH", "abH", "cdeH", "cdeH"]
    assert [choice["prompt_logprobs"] for choice in found] == [
        *[listed("ab")] * 2,
        *[listed("cde")] * 2,
    ]
    assert [choice["logprobs"]["text_offset"][-1] for choice in found] == [2, 2, 3, 3]
    read = [request.trace is not None for request in server.engine.requests]
    assert read == [True, False] * 2, "a prompt is read once"


def test_tokens_are_echoed_as_their_text(server: Server):
    found = choices(server, prompt=[[97, 98], [99]], echo=True, logprobs=0, max_tokens=0)
    assert [choice["logprobs"]["tokens"] for choice in found] == [["a", "b"], ["c"]]


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_begins_with_the_prompt(server: Server, n):
    fields = {"echo": True, "logprobs": 1, "prompt_logprobs": 1, "max_tokens": 3, "n": n}
    whole = choices(server, prompt="abc", **fields)
    events = parse_events(post(server, prompt="abc", stream=True, **fields).text)[:-1]
    for index in range(n):
        own = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == whole[index]["text"]
        for name, told in whole[index]["logprobs"].items():
            assert [item for choice in own for item in choice["logprobs"][name]] == told
        assert own[0]["prompt_logprobs"] == whole[index]["prompt_logprobs"]
        assert not any("prompt_logprobs" in choice for choice in own[1:])


def test_a_stream_of_the_prompt_alone(server: Server):
    fields = {"echo": True, "max_tokens": 0, "stream": True}
    (event, _) = parse_events(post(server, prompt="abc", **fields).text)
    (choice,) = event["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")


def test_plain_texts_follow_an_echo(server: Server):
    events = parse_events(post(server, prompt="abc", echo=True, stream=True).text)[:-1]
    texts = [event["choices"][0]["text"] for event in events]
    assert texts[0] == "abcH"
    assert "".join(texts) == "abcHello, world!"


def test_a_chat_s_prompt_has_its_log_probabilities_beside_the_choices(server: Server):
    body = server.chat(prompt_logprobs=1, max_tokens=0, n=2).json()
    tokens = server.engine.requests[0].tokens
    assert body["prompt_logprobs"] == listed("".join(map(chr, tokens)), 1)
    assert [choice["message"]["content"] for choice in body["choices"]] == ["", ""]
    assert "prompt_logprobs" not in server.chat(max_tokens=1).json()


def test_a_streamed_chat_has_them_in_its_first_event(server: Server):
    response = server.chat(prompt_logprobs=0, max_tokens=2, stream=True, n=2)
    first, *others = parse_events(response.text)[:-1]
    tokens = server.engine.requests[0].tokens
    assert first["prompt_logprobs"] == listed("".join(map(chr, tokens)))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert not any("prompt_logprobs" in event for event in others)


def test_more_numbers_than_an_answer_may_have_are_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prompt_scores, "MOST_NUMBERS", 5 * 2 * 21)
    fields = {"prompt_logprobs": 20, "max_tokens": 1, "n": 2}
    response = post(server, prompt=["abc", "abc"], **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (413, "prompt_logprobs")
    assert "252 numbers" in error["message"]
    response = post(server, prompt=["abc", "abc"], n=2, echo=True, logprobs=20)
    assert (response.status_code, response.json()["error"]["param"]) == (413, "logprobs")
    assert post(server, prompt=["abc", "ab"], **fields).status_code == 200


def test_large_answers_are_written_off_the_loop(server: Server, monkeypatch: pytest.MonkeyPatch):
    """What they say does not depend on it."""
    fields = {"echo": True, "logprobs": 1, "prompt_logprobs": 1, "max_tokens": 2}
    wanted = choices(server, prompt=["abc", "de"], **fields)
    chat = server.chat(prompt_logprobs=1).json()
    monkeypatch.setattr(prompt_scores, "OFF_LOOP_NUMBERS", 1)
    assert choices(server, prompt=["abc", "de"], **fields) == wanted
    assert server.chat(prompt_logprobs=1).json()["prompt_logprobs"] == chat["prompt_logprobs"]


class TestInterventions:
    """What is edited shows in the scores, or the request is refused, where nothing would show it"""

    NOWHERE = (
        ([GENERATED], 0),
        ([LAST], 0),
        ([{"method": "dola", "layers": [0]}], 0),
        ([HIGHLIGHT, {"method": "dola", "layers": [0]}], 1),
        ([{"method": "sgrs"}], 0),
    )
    ALONE = (
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"echo": True, "logprobs": 1, "max_tokens": 1},
        {"prompt_logprobs": 1, "max_tokens": 0},
        {"echo": True, "max_tokens": 0},
    )

    @pytest.mark.parametrize(("entries", "index"), NOWHERE, ids=str)
    @pytest.mark.parametrize("fields", ALONE, ids=str)
    def test_one_that_edits_no_such_row(self, server: Server, entries, index, fields):
        response = post(server, prompt="abc", interventions=entries, **fields)
        error = response.json()["error"]
        assert response.status_code == 400
        assert error["code"] == "intervention_invalid_params"
        assert error["param"] == f"interventions[{index}]"
        assert "/v1/score" in error["message"]
        assert not server.engine.requests

    @pytest.mark.parametrize(
        "fields",
        [
            {"prompt_logprobs": 1, "max_tokens": 1},
            {"echo": True, "max_tokens": 1},
            {"echo": True, "logprobs": 1, "max_tokens": 2},
        ],
        ids=str,
    )
    def test_one_that_acts_on_the_answer_beside(self, server: Server, fields):
        response = post(server, prompt="abc", interventions=[GENERATED], **fields)
        assert response.status_code == 200

    @pytest.mark.parametrize("fields", ALONE, ids=str)
    def test_one_that_edits_them_says_how_many(self, server: Server, fields):
        body = post(server, prompt="abc", interventions=[HIGHLIGHT], **fields).json()
        (applied,) = body["interventions_applied"]
        assert applied["rows"] == {"prompt": 3, "generated": 0, "cached": 0}

    def test_one_that_changes_nothing_is_neutral(self, server: Server):
        entry = {"method": "head_scale", "gain": 1.0, "layers": [1], "rows": "generated"}
        fields = {"echo": True, "logprobs": 1, "max_tokens": 0}
        body = post(server, prompt="abc", interventions=[entry], **fields).json()
        assert body["interventions_applied"][0]["status"] == "neutral"

    def test_one_that_was_lost_is_counted(self, make_server: MakeServer):
        server = make_server(FakeEngine(forgets=True))
        response = post(server, prompt="abc", interventions=[HIGHLIGHT], echo=True, max_tokens=0)
        assert response.status_code == 200
        services = server.app.state.services
        assert services.noops == {"pasta": 1}
        services.noops.clear()


def test_numbers_that_overflowed_are_no_scores(make_server: MakeServer):
    server = make_server(FakeEngine(unscored=float("nan")))
    response = post(server, prompt="abc", echo=True, logprobs=0, max_tokens=0)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failure")
    response = post(
        server, prompt="abc", interventions=[HIGHLIGHT], echo=True, logprobs=0, max_tokens=0
    )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "intervention_diverged"


def test_scores_that_did_not_come_are_no_answer(make_server: MakeServer):
    server = make_server(FakeEngine(unscored="missing"))
    response = post(server, prompt="abc", echo=True, logprobs=0, max_tokens=0)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failure")
