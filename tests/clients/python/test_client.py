"""What goes out, what comes back, and how often it is tried."""

import asyncio
import json

import httpx2
import pytest

import saccade_client as sdk

RECEIPT = {
    "index": 0,
    "method": "var",
    "version": 1,
    "fingerprint": "sha256:ab",
    "layers": [2, 3],
    "heads": 5,
    "rows": {"prompt": 0, "generated": 8, "cached": 4},
    "edits": {"evaluated": 16, "moved": 9},
    "status": "applied",
    "cost": "new in a later server",
}
MODELS = {"object": "list", "data": [{"id": "tiny"}, {"id": "tiny+grounded"}]}


def always(payload, status=200, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: httpx2.Response(status, json=payload, headers=named)


def in_turn(*replies):
    """Return a handler that gives the replies one after another, raising exceptions."""
    rest = iter(replies)

    def handler(request):
        reply = next(rest)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return handler


def test_a_chat_sends_its_options_and_reads_text_usage_and_receipt(harness, answer):
    payload = answer(
        "a dog",
        usage={"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        interventions_applied=[RECEIPT],
    )
    reply = harness.ask(
        always(payload, x_request_id="r-9"),
        lambda client: client.chat(
            "what?", model="tiny", temperature=0.0, n=None, logit_bias={5: -1.0}, stop=("a", "b"),
            interventions=["var:rho=0.5", sdk.Intervention("pai")], extra={"user": "me"},
        ),
    )  # fmt: skip
    assert harness.bodies == [
        {
            "messages": [{"role": "user", "content": "what?"}],
            "model": "tiny",
            "temperature": 0.0,
            "logit_bias": {"5": -1.0},
            "stop": ["a", "b"],
            "interventions": [{"method": "var", "rho": 0.5}, {"method": "pai"}],
            "user": "me",
        }
    ]
    assert (reply.text, reply.request_id, reply.usage.total_tokens) == ("a dog", "r-9", 9)
    (applied,) = reply.interventions_applied
    assert (applied.layers, applied.heads, applied.status) == ([2, 3], 5, "applied")
    assert (applied.rows.generated, applied.rows.cached, applied.edits.moved) == (8, 4, 9)
    assert (applied.version, applied.cost) == ("1", "new in a later server")


def test_no_interventions_and_an_empty_list_differ_on_the_wire(harness, answer):
    harness.ask(always(answer()), lambda client: client.chat("x", model="m"))
    harness.ask(always(answer()), lambda client: client.chat("x", model="m", interventions=[]))
    absent, empty = harness.bodies
    assert "interventions" not in absent
    assert empty["interventions"] == []


def test_a_null_receipt_is_an_empty_one(harness, answer):
    payload = answer(interventions_applied=None)
    reply = harness.ask(always(payload), lambda client: client.chat("x", model="m"))
    assert reply.interventions_applied == []


def test_images_go_before_the_text_of_the_last_user_message(harness, answer):
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "second"}]},
        {"role": "assistant", "content": "I see"},
    ]
    harness.ask(
        always(answer()), lambda client: client.chat(messages, images="http://a/b", model="m")
    )
    sent = harness.bodies[0]["messages"]
    image = {"type": "image_url", "image_url": {"url": "http://a/b"}}
    assert sent[2]["content"] == [image, {"type": "text", "text": "second"}]
    assert [sent[0], sent[1], sent[3]] == [messages[0], messages[1], messages[3]]
    assert len(messages[2]["content"]) == 1


def test_a_completion_takes_text_and_token_ids(harness):
    payload = {
        "choices": [{"text": " world", "logprobs": {"tokens": ["x"], "token_logprobs": [0]}}]
    }
    for prompt in ("hello", ["a", "b"], range(3)):
        reply = harness.ask(
            always(payload),
            lambda client, prompt=prompt: client.complete(prompt, model="m", logprobs=2),
        )
        assert reply.text == " world"
    assert [body["prompt"] for body in harness.bodies] == ["hello", ["a", "b"], [0, 1, 2]]
    assert harness.requests[0].url.path == "/v1/completions"


def three_chats(client):
    return [client.chat("x") for _ in range(3)]


async def three_chats_at_once(client):
    return await asyncio.gather(*three_chats(client))


def test_the_model_is_asked_for_once(harness, answer):
    harness.ask(
        lambda request: httpx2.Response(200, json=MODELS if request.method == "GET" else answer()),
        three_chats if harness.mode == "sync" else three_chats_at_once,
    )
    assert [request.url.path for request in harness.requests].count("/v1/models") == 1
    assert {body["model"] for body in harness.bodies} == {"tiny"}


def test_the_model_is_asked_for_once_even_by_many_at_once(answer):
    paths = []

    async def handler(request):
        paths.append(request.url.path)
        await asyncio.sleep(0)
        return httpx2.Response(200, json=MODELS if request.method == "GET" else answer())

    async def run():
        async with sdk.AsyncSaccade(transport=httpx2.MockTransport(handler)) as client:
            await three_chats_at_once(client)

    asyncio.run(run())
    assert paths.count("/v1/models") == 1


def test_a_server_without_models_is_an_error(harness):
    with pytest.raises(sdk.APIError, match="lists no model"):
        harness.ask(always({"data": []}), lambda client: client.chat("x"))


def test_discovery(harness):
    listed = {"id": "var", "version": "1", "level": "attention_weight", "needs_image": True}
    found = harness.ask(always({"data": [listed]}), lambda client: client.interventions())
    assert (found[0].id, found[0].needs_image, found[0].paper) == ("var", True, None)
    detail = harness.ask(
        always({**listed, "schema": {"type": "object"}}), lambda client: client.intervention("a/b")
    )
    assert detail.json_schema == {"type": "object"}
    assert harness.requests[-1].url.raw_path == b"/v1/interventions/a%2Fb"
    models = harness.ask(always(MODELS), lambda client: client.models())
    assert [model.id for model in models] == ["tiny", "tiny+grounded"]


def test_validate_is_a_dry_run(harness):
    entry = {"method": "var", "rho": 0.5}
    payload = {"fingerprint": "sha256:ab", "interventions": [{"method": "var", "entry": entry}]}
    reply = harness.ask(always(payload), lambda client: client.validate("var", model="m"))
    assert harness.requests[0].url.path == "/v1/interventions/validate"
    assert (reply.fingerprint, reply.interventions[0].entry) == ("sha256:ab", entry)
    harness.ask(
        always(payload),
        lambda client: client.validate(["var"], "what?", images="http://a/b", model="m"),
    )
    plain, with_prompt = harness.bodies
    assert plain == {"interventions": [{"method": "var"}], "model": "m"}
    assert len(with_prompt.pop("messages")[0]["content"]) == 2
    assert with_prompt == plain
    with pytest.raises(sdk.InvalidInput, match="need a prompt"):
        harness.ask(always({}), lambda client: client.validate("var", images="http://a/b"))


@pytest.mark.parametrize("name", ["ready", "live"])
def test_probes_answer_yes_or_no_and_do_not_retry(harness, name):
    use = lambda client: getattr(client, name)()
    assert harness.ask(lambda request: httpx2.Response(200), use) is True
    assert harness.ask(lambda request: httpx2.Response(503), use) is False
    assert harness.ask(in_turn(httpx2.ConnectError("refused")), use) is False
    assert harness.ask(in_turn(httpx2.ReadTimeout("hung")), use) is False
    with pytest.raises(sdk.NotFound):
        harness.ask(lambda request: httpx2.Response(404), use)
    assert {request.url.path for request in harness.requests} == {f"/{name}"}
    assert len(harness.requests) == 5
    assert harness.waits == []


def test_busy_then_well(harness, answer):
    handler = in_turn(
        httpx2.Response(503, headers={"retry-after": "3"}),
        httpx2.ConnectError("refused"),
        httpx2.Response(200, json=answer("at last")),
    )
    assert harness.ask(handler, lambda client: client.chat("x", model="m")).text == "at last"
    assert harness.waits == [3.0, 1.0]
    assert harness.bodies[0] == harness.bodies[2]


def test_giving_up_raises_what_happened_last(harness):
    use = lambda client: client.chat("x", model="m")
    with pytest.raises(sdk.ServerBusy):
        harness.ask(always({}, 503), use)
    assert (len(harness.requests), harness.waits) == (3, [0.5, 1.0])
    with pytest.raises(sdk.ConnectionFailed, match=r"POST http://127.0.0.1:8000/v1/chat.*gone"):
        harness.ask(in_turn(httpx2.ReadError("gone")), use, max_retries=0)
    with pytest.raises(sdk.Timeout, match="ReadTimeout"):
        harness.ask(in_turn(httpx2.ReadTimeout("")), use)


@pytest.mark.parametrize(("status", "headers"), [(400, {}), (500, {"x-should-retry": "false"})])
def test_what_would_fail_again_is_tried_once(harness, status, headers):
    with pytest.raises(sdk.APIError):
        harness.ask(always({}, status, **headers), lambda client: client.chat("x", model="m"))
    assert len(harness.requests) == 1


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'{"choices":[{"message":3}]}'])
def test_an_unreadable_success_is_an_error(harness, content):
    with pytest.raises(sdk.APIError, match="could not be understood") as caught:
        harness.ask(
            lambda request: httpx2.Response(200, content=content),
            lambda client: client.chat("x", model="m"),
        )
    assert (caught.value.status, caught.value.code) == (200, "invalid_response")


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"temprature": 1}, TypeError, "did you mean 'temperature'"),
        ({"zzz": 1}, TypeError, "extra="),
        ({"extra": {"messages": []}}, sdk.InvalidInput, "repeats what is set already: messages"),
        ({"temperature": float("nan")}, sdk.InvalidInput, "JSON"),
        ({"interventions": "var:rho=1e999"}, sdk.InvalidInput, "JSON"),
        ({"stop": "\ud800"}, sdk.InvalidInput, "JSON"),
        ({"seed": object()}, sdk.InvalidInput, "seed is object"),
        ({"images": "no/such/file"}, sdk.InvalidInput, "cannot read"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(harness, options, error, reason):
    with pytest.raises(error, match=reason):
        harness.ask(always({}), lambda client: client.chat("x", model="m", **options))
    assert harness.requests == []


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [([], r"not \[\]"), (3, "not 3"), (["hi"], "message 0 is str"), (None, "not None")],
)
def test_bad_prompts(harness, prompt, reason):
    with pytest.raises(sdk.InvalidInput, match=reason):
        harness.ask(always({}), lambda client: client.chat(prompt, model="m"))


def test_images_without_a_user_message(harness):
    with pytest.raises(sdk.InvalidInput, match="role 'user'"):
        harness.ask(
            always({}), lambda client: client.chat([{"role": "system"}], images="http://a/b")
        )


@pytest.mark.parametrize(
    ("base_url", "sent"),
    [
        ("http://host:1", "http://host:1/v1/models"),
        ("https://host/gate/", "https://host/gate/v1/models"),
        ("http://host/v1", "http://host/v1/models"),
        ("http://host/v1/", "http://host/v1/models"),
    ],
)
def test_base_urls(harness, base_url, sent):
    harness.ask(always(MODELS), lambda client: client.models(), base_url=base_url)
    assert str(harness.requests[0].url) == sent


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "ftp://host"},
        {"base_url": "http://"},
        {"base_url": "http://host?x=1"},
        {"base_url": None},
        {"max_retries": -1},
        {"max_retries": True},
        {"api_key": "key\n"},
        {"api_key": "schlüssel"},
    ],
)
def test_bad_settings(harness, settings):
    with pytest.raises(sdk.InvalidInput):
        harness.ask(always({}), lambda client: client.models(), **settings)


def test_the_key_comes_from_the_argument_or_the_environment(
    harness, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SACCADE_API_KEY", "from-env")
    harness.ask(always(MODELS), lambda client: client.models())
    harness.ask(always(MODELS), lambda client: client.models(), api_key="given")
    harness.ask(always(MODELS), lambda client: client.models(), api_key="")
    sent = [request.headers.get("authorization") for request in harness.requests]
    assert sent == ["Bearer from-env", "Bearer given", None]


def test_the_key_is_not_shown():
    with sdk.Saccade(api_key="secret-1") as client:
        assert repr(client) == "Saccade(base_url='http://127.0.0.1:8000', api_key=set)"


def test_a_client_of_your_own_keeps_its_headers_and_stays_open(answer):
    seen = []

    def handler(request):
        seen.append((request.headers["x-tenant"], json.loads(request.content)["model"]))
        return httpx2.Response(200, json=answer())

    transport = httpx2.MockTransport(handler)
    with httpx2.Client(transport=transport, headers={"x-tenant": "t"}) as own:
        for model in ("a", "b"):
            with sdk.Saccade(http_client=own) as client:
                client.chat("x", model=model)
        with pytest.raises(sdk.InvalidInput, match="http_client or transport"):
            sdk.Saccade(http_client=own, transport=transport)
    assert seen == [("t", "a"), ("t", "b")]
