"""S01 to S09, P10, P11: streams as clients read them."""

import json
import time

import pytest

from saccade_testing.public import asking, pictures

HI = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def question():
    return asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION))


def test_a_stream_has_the_shape_that_clients_expect(demo, question):
    """S01. From vllm-project/vllm#36944 and #19650."""
    streamed = demo.stream(question, max_tokens=5)
    choices = streamed.choices
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert choices[0]["delta"]["role"] == "assistant"
    assert not any("role" in choice["delta"] for choice in choices[1:])
    assert all("finish_reason" in choice for choice in choices)
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == "length"
    assert not choices[-1]["delta"].get("content")
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in streamed.chunks}) == 1
    assert {chunk["object"] for chunk in streamed.chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in streamed.chunks)


def test_usage_comes_last_and_is_null_before(demo, question):
    """S02. From BerriAI/litellm#37780, datarobot-oss/datarobot-genai#238,
    vllm-project/vllm#7179."""
    *before, last = demo.stream(question, stream_options={"include_usage": True}).chunks
    assert last["choices"] == []
    whole = asking.answered(demo.chat(question))["usage"]
    assert [last["usage"][name] for name in ("prompt_tokens", "completion_tokens")] == [
        whole[name] for name in ("prompt_tokens", "completion_tokens")
    ]
    assert all("usage" in chunk and chunk["usage"] is None for chunk in before)


def test_usage_can_come_with_every_chunk(demo, question):
    """P10: always sent by guidellm and others. From vllm-project/guidellm#603,
    BerriAI/litellm#15713, sgl-project/sglang#12241, pydantic/pydantic-ai#4056."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = demo.stream(question, stream_options=options).chunks
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] <= 1
    assert counts[-1] > 5
    assert len({chunk["usage"]["prompt_tokens"] for chunk in chunks}) == 1
    for chunk in chunks:
        usage = chunk["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(
    "options",
    [{"include_usage": False}, {"include_usage": False, "continuous_usage_stats": False}, {}, None],
    ids=str,
)
def test_without_include_usage_there_is_no_usage(demo, question, options):
    """P10."""
    chunks = demo.stream(question, stream_options=options).chunks
    assert not any(chunk.get("usage") for chunk in chunks)
    assert chunks[-1]["choices"]


def test_the_first_request_of_guidellm_is_answered(demo):
    """P11. From vllm-project/guidellm#308: both limits, a null stop, and usage."""
    body = {
        "prompt": "Test connection",
        "model": demo.card["id"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "stop": None,
        "ignore_eos": True,
    }
    chunks = demo.stream_from("/v1/completions", body).chunks
    assert chunks[-1]["usage"]["completion_tokens"] == 1
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


def test_two_choices_each_begin_and_end_once(demo, question):
    """S03. From pydantic/logfire#545."""
    choices = demo.stream(question, n=2).choices
    assert sorted(c["index"] for c in choices if c["delta"].get("role")) == [0, 1]
    assert sorted(c["index"] for c in choices if c["finish_reason"]) == [0, 1]


def test_streamed_logprobs_are_those_of_the_whole_answer(demo, question):
    """S04. From vllm-project/vllm#8988, BerriAI/litellm#4898."""
    choices = demo.stream(question, logprobs=True, top_logprobs=2).choices
    entries = [e for c in choices if c["logprobs"] for e in c["logprobs"]["content"]]
    whole = demo.see(question, top_logprobs=2)
    assert [entry["logprob"] for entry in entries] == pytest.approx(whole.logprobs, abs=1e-4)
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode().startswith(whole.text)


@pytest.mark.parametrize("stop", [["circle and"], ["blue square."], ["zzz", " a b"], ["."]])
def test_a_stop_text_across_tokens_ends_a_stream_where_it_ends_the_answer(demo, question, stop):
    """S05. From oobabooga/textgen#1369."""
    whole = asking.content(demo.chat(question, stop=stop))
    streamed = demo.stream(question, stop=stop)
    assert streamed.text == whole
    assert not any(text in whole for text in stop)
    assert whole.startswith("There is a red")
    assert streamed.choices[-1]["finish_reason"] == "stop"


def test_half_a_character_is_never_sent(demo):
    """S06. From ollama/ollama#13497, vllm-project/vllm#34875, standardcompletions/rfcs#2."""
    first = asking.answered(
        demo.http.post("/tokenize", json={"model": demo.card["id"], "prompt": "\u4f60"})
    )["tokens"][-3:]
    body = {"logit_bias": {str(first[0]): 100}, "max_tokens": 3, "logprobs": True}
    answer = asking.answered(demo.chat(HI, **body))["choices"][0]
    assert [entry["bytes"] for entry in answer["logprobs"]["content"]] == [[0xE4]] * 3
    streamed = demo.stream(HI, **body)
    assert streamed.text == answer["message"]["content"]
    assert set(streamed.text) == {"\ufffd"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"interventions": [{"method": "nothing"}]}, "interventions[0].method"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"stream_options": "usage"}, "stream_options"),
    ],
    ids=["method", "length", "option", "options"],
)
def test_an_error_before_the_first_token_is_no_stream(demo, fields, param):
    """S07. From raullenchai/Rapid-MLX#457, vllm-project/guidellm#743."""
    answer = demo.http.post("/v1/chat/completions", json=demo.body(HI, stream=True, **fields))
    asking.refused(answer, param)
    assert answer.headers["content-type"] == "application/json"


def test_a_damaged_image_is_no_stream(demo):
    """S07."""
    part = asking.image("data:image/png;base64,AAAA")
    answer = demo.http.post(
        "/v1/chat/completions", json=demo.body(asking.user(part, asking.text("x")), stream=True)
    )
    asking.refused(answer, "messages[0].content[0].image_url")


def running(demo):
    load = demo.http.get("/load").json()
    return load["running"] + load["waiting"]


def test_a_client_that_leaves_frees_its_place(demo):
    """S08. From tjardoo/openai-client#140, BerriAI/litellm#15713."""
    body = demo.body(HI, stream=True, ignore_eos=True, max_tokens=1500)

    def leave():
        with demo.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            next(answer.iter_raw())

    demo.at_once([leave] * 20)
    end = time.monotonic() + 30
    while running(demo):
        assert time.monotonic() < end, "streams that nobody reads go on"
        time.sleep(0.05)
    assert demo.see(HI).text


def small(demo, **more):
    return json.dumps(demo.body(HI, max_tokens=4, **more)).encode()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_of_the_first_version_reads_to_the_end_of_the_connection(demo, stream):
    """S09: proxies speak HTTP/1.0, which knows no chunks."""
    body = small(demo, stream=stream)
    got = demo.exchange(
        b"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    head, _, rest = got.partition(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n")[0]
    assert b"chunked" not in head.lower()
    if stream:
        assert rest.rstrip().endswith(b"data: [DONE]")
    else:
        assert json.loads(rest)["choices"]
