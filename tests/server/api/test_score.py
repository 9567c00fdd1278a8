"""POST /v1/score over a scripted engine: what reaches it, what is said, what is refused."""

import asyncio
from dataclasses import dataclass

import pytest

from saccade_testing.api.bodies import MODEL, PICTURE
from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.scored import fake_score
from saccade_testing.api.server import MakeServer, Server

USER = {"role": "user", "content": "Hi"}
HIGHLIGHT = {"method": "pasta", "highlight": ["b"], "layers": [1]}
GENERATED = {"method": "pasta", "highlight": ["b"], "layers": [1], "rows": "generated"}
DOLA = {"method": "dola", "layers": [0]}


def post(server, **fields):
    return server.http.post("/v1/score", json={"model": MODEL} | fields)


def answered(server, **fields):
    response = post(server, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def entry(index: int, text: str) -> dict:
    """What a text of bytes gets."""
    logprobs = [fake_score(token)[0] for token in text.encode()]
    return {
        "index": index,
        "logprob": sum(logprobs),
        "is_greedy": all(fake_score(token)[1] == 1 for token in text.encode()),
        "token_count": len(text),
        "tokens": list(text),
        "token_ids": list(text.encode()),
        "token_logprobs": logprobs,
    }


def test_each_continuation_has_its_score(server: Server):
    body = answered(server, prompt="ab", continuations=["cd", "e", "hdl"])
    assert body["object"] == "score"
    assert body["scores"] == [entry(0, "cd"), entry(1, "e"), entry(2, "hdl")]
    assert [one["is_greedy"] for one in body["scores"]] == [False, False, True]
    assert "interventions_applied" not in body


def test_the_engine_gets_all_tokens_at_once_and_draws_none(server: Server):
    answered(server, prompt="ab", continuations=["cde"])
    (request,) = server.engine.requests
    assert (request.tokens, request.given) == (tuple(b"ab"), tuple(b"cd"))
    assert request.sampling.max_tokens == 2
    (reading,) = request.trace.readings
    assert (reading.rows, reading.tokens) == ((1, 4), tuple(b"cde"))


def test_where_a_method_acts_on_draws_they_are_forced(server: Server):
    body = answered(server, prompt="ab", continuations=["cde"], interventions=[DOLA])
    (request,) = server.engine.requests
    assert (request.given, request.trace) == ((), None)
    assert request.sampling.forced == tuple(b"cde")
    (score,) = body["scores"]
    assert score["token_logprobs"] == [-0.5] * 3
    assert score["is_greedy"], "nothing is likelier"
    assert body["interventions_applied"][0]["method"] == "dola"


def test_usage_counts_the_prompt_for_each_and_what_they_share(server: Server):
    server.engine.cached_tokens = 1
    usage = answered(server, prompt="ab", continuations=["cd", "e"])["usage"]
    assert usage == {
        "prompt_tokens": 2 + 2 + 2 + 1,
        "completion_tokens": 0,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_white_space_at_the_end_of_a_text_goes_with_what_follows(server: Server):
    body = answered(server, prompt="ab \n", continuations=["c", [100]])
    assert [score["tokens"] for score in body["scores"]] == [[" ", "\n", "c"], ["d"]]
    tokens = [bytes(request.tokens) for request in server.engine.requests]
    assert tokens == [b"ab", b"ab \n"]
    assert answered(server, prompt="  ", continuations=["c"])["scores"][0]["tokens"] == ["c"]


def test_prompts_and_continuations_may_be_tokens(server: Server):
    body = answered(server, prompt=[97, 98], continuations=["c", [100, 101]])
    assert [score["token_ids"] for score in body["scores"]] == [[99], [100, 101]]
    assert {request.tokens for request in server.engine.requests} == {(97, 98)}


def test_a_conversation_is_continued_by_what_an_assistant_might_say(server: Server):
    body = answered(server, messages=[USER], continuations=["Yes", [78]])
    assert [score["tokens"] for score in body["scores"]] == [["Y", "e", "s"], ["N"]]
    assert bytes(server.engine.requests[0].tokens) == b"<user>Hi<assistant>"
    said = {"role": "assistant", "content": "No"}
    answered(server, messages=[USER, said], continue_final_message=True, continuations=["t"])
    assert bytes(server.engine.requests[-1].tokens) == b"<user>Hi<assistant>No|"


def test_images_are_seen(server: Server):
    image = {"type": "image_url", "image_url": {"url": PICTURE}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "b"}]}]
    body = answered(server, messages=messages, continuations=["a"], interventions=[HIGHLIGHT])
    (request,) = server.engine.requests
    assert len(request.images) == 1
    assert body["interventions_applied"][0]["rows"]["prompt"] == len(request.tokens)


class TestInterventions:
    """They act on rows of a continuation as on those of an answer."""

    def test_its_rows_are_generated_ones(self, server: Server):
        body = answered(server, prompt="abc", continuations=["xyz"], interventions=[GENERATED])
        (applied,) = body["interventions_applied"]
        assert applied["rows"] == {"prompt": 0, "generated": 2, "cached": 0}
        assert applied["status"] == "applied"

    def test_a_single_token_has_none(self, server: Server):
        """The first token of an answer would be drawn without it, too."""
        body = answered(server, prompt="abc", continuations=["x"], interventions=[GENERATED])
        (applied,) = body["interventions_applied"]
        assert applied["status"] == "no_effect"

    def test_one_that_only_chooses_is_refused(self, server: Server):
        entries = [HIGHLIGHT, {"method": "sgrs"}]
        response = post(server, prompt="abc", continuations=["x"], interventions=entries)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "interventions[1]")
        assert "chooses" in error["message"]
        assert not server.engine.requests

    def test_one_that_was_lost_is_counted(self, make_server: MakeServer):
        server = make_server(FakeEngine(forgets=True))
        answered(server, prompt="abc", continuations=["xy"], interventions=[GENERATED])
        services = server.app.state.services
        assert services.noops == {"pasta": 1}
        services.noops.clear()

    def test_numbers_that_overflow_are_its_doing(self, make_server: MakeServer):
        server = make_server(FakeEngine(unscored=float("nan")))
        fields = {"prompt": "abc", "continuations": ["xy"]}
        response = post(server, **fields, interventions=[HIGHLIGHT])
        assert response.json()["error"]["code"] == "intervention_diverged"
        assert post(server, **fields).json()["error"]["code"] == "engine_failure"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"continuations": ["x"]}, "invalid_value", "prompt"),
        ({"prompt": "a", "messages": [USER], "continuations": ["x"]}, "invalid_value", "prompt"),
        ({"prompt": "a"}, "missing_field", "continuations"),
        ({"prompt": "a", "continuations": []}, "invalid_value", "continuations"),
        ({"prompt": "a", "continuations": ["x", ""]}, "invalid_value", "continuations[1]"),
        ({"prompt": "a", "continuations": ["x", []]}, "invalid_value", "continuations[1]"),
        ({"prompt": "a", "continuations": ["x", 5]}, "invalid_value", "continuations[1]"),
        ({"prompt": "a", "continuations": [[1, -1]]}, "invalid_value", "continuations[0][1]"),
        ({"prompt": "a", "continuations": ["x", [258]]}, "invalid_value", "continuations[1]"),
        ({"prompt": [258], "continuations": ["x"]}, "invalid_value", "prompt"),
        ({"prompt": "a", "continuations": ["x"] * 65}, "invalid_value", "continuations"),
        ({"prompt": "", "continuations": ["x"]}, "invalid_value", "prompt"),
        (
            {"prompt": "a", "continuations": ["x", "y" * 512]},
            "context_length_exceeded",
            "continuations[1]",
        ),
        (
            {"prompt": "a" * 500, "continuations": ["x", "y" * 13]},
            "context_length_exceeded",
            "continuations[1]",
        ),
        (
            {"prompt": "a", "continuations": ["x", [5] * 512]},
            "context_length_exceeded",
            "continuations[1]",
        ),
        ({"prompt": "a" * 512, "continuations": ["x"]}, "context_length_exceeded", "prompt"),
        ({"prompt": "a", "continuations": ["x"], "max_tokens": 1}, "invalid_value", "max_tokens"),
        ({"prompt": "a", "continuations": ["x"], "enable_thinking": False}, None, None),
        (
            {"messages": [USER], "continuations": ["x"], "add_special_tokens": True},
            "invalid_value",
            "add_special_tokens",
        ),
        ({"prompt": "a", "continuations": ["x"], "model": "y"}, "model_not_found", "model"),
    ],
    ids=lambda value: str(value)[:48],
)
def test_refusals(server: Server, fields, code, param):
    response = post(server, **fields)
    error = response.json()["error"]
    assert response.status_code in (400, 404)
    assert code in (None, error["code"])
    assert param in (None, error["param"])
    assert not server.engine.requests


def test_as_many_tokens_as_there_is_room_for(server: Server):
    answered(server, prompt="a" * 500, continuations=["y" * 12])


@dataclass
class SlowEngine(FakeEngine):
    """Notes how many sequences run at once."""

    most: int = 0

    async def _outputs(self, request):
        self.most = max(self.most, len(self.running))
        await asyncio.sleep(0.05)
        self.begun = [*getattr(self, "begun", []), (request.request_id, len(self.running))]
        async for output in super()._outputs(request):
            yield output


@pytest.mark.parametrize(("length", "most"), [(64, 3), (65, 2)])
def test_behind_a_long_prompt_the_first_goes_ahead(make_server: MakeServer, length, most):
    """The others find its pages; of a shorter prompt no page is ever full."""
    server = make_server(SlowEngine())
    body = answered(server, prompt="a" * length, continuations=["x", "y", "z"])
    assert [score["tokens"] for score in body["scores"]] == [["x"], ["y"], ["z"]]
    assert server.engine.most == most


def test_an_engine_that_is_full_says_so(make_server: MakeServer):
    server = make_server(FakeEngine(capacity=False))
    response = post(server, prompt="a", continuations=["x"])
    assert response.status_code == 503
