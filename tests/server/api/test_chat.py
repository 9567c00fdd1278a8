"""Chat completions over a real socket, as the official client sees them."""

import asyncio

import openai
import pytest

from saccade_testing.api.bodies import MODEL, PICTURE, image_messages
from saccade_testing.api.server import Server


def test_a_chat_is_answered(server: Server):
    reply = server.openai().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}]
    )
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")
    assert reply.model == MODEL
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == "Hello, world!"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.prompt_tokens == len("<user>Hi<assistant>")
    assert reply.usage.completion_tokens == 14
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 14
    assert reply.system_fingerprint.startswith("fp_")
    assert reply._request_id


def test_a_stream_says_the_same(server: Server):
    stream = server.openai().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello, world!"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({c.id for c in chunks}) == 1


def test_the_asynchronous_client(server: Server):
    async def main() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(main()) == "Hello, world!"


def test_the_frames_of_a_stream(server: Server):
    response = server.chat(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.text.endswith("data: [DONE]\n\n")
    events = server.events(stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 14
    assert all(event["usage"] is None for event in events[:-2])
    assert all("usage" not in event for event in server.events()[:-1])


def test_a_stream_can_be_asked_for_usage_by_the_official_client(server: Server):
    stream = server.openai().chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    assert list(stream)[-1].usage.completion_tokens == 14


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [("wor", "Hello, "), (["zzz", "o, w"], "Hell"), (["!", "world"], "Hello, ")],
)
def test_stop_strings_cut_across_tokens(server: Server, stream, stop, expected):
    if stream:
        choices = [event["choices"][0] for event in server.events(stop=stop)[:-1]]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        reason = choices[-1]["finish_reason"]
    else:
        choice = server.chat(stop=stop).json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == (expected, "stop")
    assert server.engine.requests[0].request_id in server.engine.aborted
    assert not server.engine.running


def test_usage_counts_tokens_up_to_the_stop_string(server: Server):
    usage = server.chat(stop="wor").json()["usage"]
    assert usage["completion_tokens"] == len("Hello, wor")


def test_characters_arrive_whole(server: Server):
    server.engine.answer = "naïve 日本 🙂!"
    events = server.events()[:-1]
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(pieces) == "naïve 日本 🙂!"
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_replaced_at_the_end(server: Server):
    server.engine.answer = "ab🙂"
    reply = server.chat(max_tokens=4).json()["choices"][0]
    assert reply["message"]["content"] == "ab\ufffd"
    assert reply["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers(server: Server, stream):
    fields = {"n": 3, "seed": 2**63 - 2}
    if stream:
        events = server.events(**fields)[:-1]
        seen = {event["choices"][0]["index"] for event in events}
        finishes = [event["choices"][0]["finish_reason"] for event in events]
        assert finishes.count("stop") == 3
    else:
        body = server.chat(**fields).json()
        seen = {choice["index"] for choice in body["choices"]}
        assert body["usage"]["prompt_tokens"] == len("<user>Hi<assistant>")
        assert body["usage"]["completion_tokens"] == 3 * 14
    assert seen == {0, 1, 2}
    seeds = {request.sampling.seed for request in server.engine.requests}
    assert seeds == {2**63 - 2, 2**63 - 1, 0}


def test_without_a_seed_every_request_has_its_own(server: Server):
    server.chat()
    server.chat()
    first, second = server.engine.requests
    assert first.sampling.seed != second.sampling.seed


def test_log_probabilities(server: Server):
    reply = server.openai().chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        logprobs=True,
        top_logprobs=2,
    )
    content = reply.choices[0].logprobs.content
    assert [item.token for item in content] == list("Hello, world!")
    assert content[0].bytes == [ord("H")]
    assert content[0].logprob == -0.5
    assert content[-1].logprob == -9999.0
    assert [item.token for item in content[0].top_logprobs] == ["A", "B"]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_end_with_the_text(server: Server, stream):
    fields = {"logprobs": True, "stop": "world"}
    if stream:
        choices = [event["choices"][0] for event in server.events(**fields)[:-1]]
        items = [item for c in choices if c["logprobs"] for item in c["logprobs"]["content"]]
    else:
        items = server.chat(**fields).json()["choices"][0]["logprobs"]["content"]
    assert "".join(item["token"] for item in items) == "Hello, "


def test_the_sampling_parameters_reach_the_engine(server: Server):
    server.chat(
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=1,
        frequency_penalty=-1,
        stop_token_ids=[5],
        ignore_eos=True,
        logit_bias={"7": -100},
        max_completion_tokens=9,
        seed=-1,
    )
    sampling = server.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 0)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.stop_token_ids, sampling.ignore_eos) == ((5,), True)
    assert (sampling.logit_bias, sampling.max_tokens) == ({7: -100}, 9)
    assert sampling.seed == 2**63 - 1


def test_openai_defaults(server: Server):
    server.chat()
    request = server.engine.requests[0]
    assert request.sampling.temperature == 1.0
    assert request.sampling.max_tokens == 512 - len(request.tokens)


def test_an_answer_may_fill_the_context(server: Server):
    prompt = len("<user>Hi<assistant>")
    assert server.chat(max_tokens=512 - prompt).status_code == 200
    assert server.chat(max_tokens=513 - prompt).status_code == 400


def test_cached_tokens_are_reported(server: Server):
    server.engine.cached_tokens = 7
    details = server.chat().json()["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": 7}


def test_an_image_reaches_the_engine(server: Server):
    assert server.chat(messages=image_messages(PICTURE)).status_code == 200
    request = server.engine.requests[0]
    (image,) = request.images
    assert (image.start, image.length) == (len("<user>"), 4)
    assert image.pixels.unpack().shape == (3, 4, 4)
    assert request.tokens[image.start : image.start + 4] == (257,) * 4


def test_the_roles(server: Server):
    roles = ["developer", "user", "assistant", "user"]
    messages = [{"role": role, "content": role[0], "name": "x"} for role in roles]
    messages[2] |= {"refusal": None, "tool_calls": None, "audio": None}
    assert server.chat(messages=messages).status_code == 200
    text = bytes(server.engine.requests[0].tokens).decode()
    assert text == "<system>d<user>u<assistant>a<user>u<assistant>"


def test_many_at_once(server: Server):
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            calls = [
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": str(i)}]
                )
                for i in range(20)
            ]
            return [reply.choices[0].message.content for reply in await asyncio.gather(*calls)]

    assert asyncio.run(main()) == ["Hello, world!"] * 20
