"""M09, M11, M22, M23, P18, P34, H01, H12 on a text model whose template knows tools and thinking.

A plain completion is taken as it is, so each chat is compared with the prompt it must become.
"""

import json

import pytest

from saccade_testing.public import asking, pictures


def turn(role, content):
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


BEGIN = "<|im_start|>assistant\n"
SILENT = "<think>\n\n</think>\n\n"


@pytest.fixture
def is_asked(thinker):
    """Hold that a chat becomes a prompt."""

    def check(prompt, *messages, **more):
        chat, plain = thinker.see(*messages, **more), thinker.continued(prompt)
        assert chat.prompt_tokens == plain.prompt_tokens
        assert chat.distance(plain) < 1e-3

    return check


def test_prompts_are_told_apart(thinker):
    """What the comparisons below rest on: this model's answers show every character."""
    one, other = (thinker.continued(turn("user", said) + BEGIN) for said in ("Time?", "Time!"))
    assert one.prompt_tokens == other.prompt_tokens
    assert one.distance(other) > 0.1


def test_a_chat_follows_the_template(is_asked):
    is_asked(turn("system", "Be brief.") + turn("user", "Time?") + BEGIN, SYSTEM, "Time?")


SYSTEM = {"role": "system", "content": "Be brief."}
ARGUMENTS = {"zone": "UTC", "at": [1, 2.5], "über": None}


def call(arguments, **more):
    function = {"name": "now", "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function} | more


def result(content):
    return {"role": "tool", "tool_call_id": "call_1", "content": content}


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}], ids=str)
@pytest.mark.parametrize("said", ["12:00", [{"type": "text", "text": "12:00"}]])
def test_a_history_with_tools_is_written_by_the_template(is_asked, content, said):
    """M09, M23: litellm and LangChain leave the content out, or send null or "". From
    InternLM/lmdeploy#2973, vllm-project/vllm#25001, 0xPlaygrounds/rig#1362,
    lmstudio-ai/lmstudio-bug-tracker#261."""
    asked = '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    prompt = (
        turn("user", "Time?")
        + turn("assistant", asked)
        + turn("user", "\n<tool_response>\n12:00\n</tool_response>").replace("user\n\n", "user\n")
        + BEGIN
    )
    called = {"role": "assistant", "tool_calls": [call("{}")], **content}
    is_asked(prompt, "Time?", called, result(said))


def test_the_arguments_of_a_call_reach_the_template_whole(thinker):
    """As JSON text, which is how they come: every character of them counts."""
    sent = json.dumps(ARGUMENTS, ensure_ascii=False)
    histories = [
        thinker.see("a", {"role": "assistant", "tool_calls": [call(text)]}, result("1"), "b")
        for text in (sent, sent.replace("UTC", "CET"), "{}")
    ]
    assert histories[0].distance(histories[1]) > 0.01
    assert histories[0].prompt_tokens > histories[2].prompt_tokens + 10


def test_two_calls_and_their_results_are_all_there(thinker):
    both = [call("{}"), call("{}", id="call_2")]
    one, two = (
        thinker.see("a", {"role": "assistant", "tool_calls": calls}, *results).prompt_tokens
        for calls, results in ((both[:1], [result("1")]), (both, [result("1"), result("2")]))
    )
    assert two - one > 30


def test_a_switch_that_changes_nothing_here_is_named(thinker):
    """The template asks for thinking as it begins an answer; a continued one has begun."""
    said = {"role": "assistant", "content": "It is"}
    more = {"max_tokens": 1, "enable_thinking": False}
    continued = thinker.chat("Time?", said, continue_final_message=True, **more)
    assert continued.headers["x-saccade-ignored-fields"] == "enable_thinking"
    assert "x-saccade-ignored-fields" not in thinker.chat("Time?", **more).headers


WRONG_CALLS = {
    "no name": ([{"id": "c", "type": "function", "function": {"arguments": "{}"}}], "function"),
    "no function": ([{"id": "c", "type": "function"}], "function"),
    "text": (["now"], ""),
    "not a list": ("now", ""),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_call_that_says_nothing_is_refused_at_its_place(thinker, name):
    calls, _ = WRONG_CALLS[name]
    answer = thinker.chat("a", {"role": "assistant", "tool_calls": calls}, result("1"))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("messages[1].tool_calls")
    asking.refused(answer, answer.json()["error"]["param"])


def test_text_parts_are_joined_with_a_line_feed(is_asked):
    """M22: as vLLM joins them. From vllm-project/vllm#9358, Blaizzy/mlx-vlm#1137."""
    prompt = turn("user", "the red\ncat") + BEGIN
    is_asked(prompt, asking.user(asking.text("the red"), asking.text("cat")))
    is_asked(prompt, asking.user(asking.text("the red\ncat")))


def test_parts_of_every_role_are_joined_alike(is_asked):
    parts = [asking.text("a"), asking.text("b")]
    prompt = turn("system", "a\nb") + turn("user", "Hi") + turn("assistant", "a\nb")
    is_asked(
        prompt + turn("user", "Hi") + BEGIN,
        {"role": "system", "content": parts},
        "Hi",
        {"role": "assistant", "content": parts},
        "Hi",
    )


def test_an_image_is_refused_by_a_model_without_eyes(thinker):
    answer = thinker.chat(asking.user(asking.image(pictures.URL), asking.text("x")))
    asking.refused(answer, "messages[0].content[0].image_url", "images_not_supported")


PREFILL = {"continue_final_message": True, "add_generation_prompt": False}


@pytest.mark.parametrize("begun", ["There is", "It ends \n"])
def test_a_begun_answer_is_continued(is_asked, begun):
    """M11. From vllm-project/vllm#6772, ggml-org/llama.cpp#11755, InternLM/lmdeploy#2798,
    sgl-project/sglang#4226."""
    last = {"role": "assistant", "content": begun}
    is_asked(turn("user", "Hi") + BEGIN + begun, "Hi", last, **PREFILL)


def test_without_a_generation_prompt_nothing_is_begun(is_asked):
    is_asked(turn("user", "Hi"), "Hi", add_generation_prompt=False)


THINKING = [{"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}]


@pytest.mark.parametrize("fields", THINKING, ids=str)
def test_thinking_can_be_turned_off(is_asked, fields):
    """P18, P34: done, never accepted and left undone. From run-llama/llama_index#18635,
    yangyaofei/dify-vllm-provider#15, gpustack/gpustack#1952,
    EleutherAI/lm-evaluation-harness#3088, yigit353/langchain-qwq#47, QwenLM/qwen-code#945."""
    is_asked(turn("user", "Hi") + BEGIN + SILENT, "Hi", **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": True},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"chat_template_kwargs": {}},
        {"chat_template_kwargs": None},
        {"enable_thinking": None},
    ],
    ids=str,
)
def test_thinking_is_left_on_by_what_asks_for_it(is_asked, fields):
    is_asked(turn("user", "Hi") + BEGIN, "Hi", **fields)


@pytest.mark.parametrize("value", ["false", "False", 0, "no", [], {}], ids=repr)
def test_thinking_is_a_switch(thinker, value):
    """P34: the template asks whether it is false, and none of these is."""
    answer = thinker.chat("Hi", chat_template_kwargs={"enable_thinking": value})
    asking.refused(answer, "chat_template_kwargs.enable_thinking", says="true or false")


def test_a_variable_that_the_template_lacks_is_refused_by_name(thinker):
    """P18. The template's own are named, so that a misspelt one is found."""
    answer = thinker.chat("Hi", chat_template_kwargs={"enable_thoughts": False})
    param = "chat_template_kwargs.enable_thoughts"
    assert "enable_thinking" in asking.refused(answer, param)


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "bos_token"])
def test_what_the_server_gives_the_template_is_not_replaced(thinker, name):
    answer = thinker.chat("Hi", chat_template_kwargs={name: "x"})
    asking.refused(answer, f"chat_template_kwargs.{name}")


@pytest.mark.parametrize("fields", [{}, *THINKING, {"add_generation_prompt": False}], ids=str)
def test_the_tokens_of_a_chat_are_those_that_it_uses(thinker, fields):
    """H12. From jjang-ai/vmlx#99, NVIDIA-NeMo/Gym#636."""
    body = {"messages": [SYSTEM, {"role": "user", "content": "Hi"}], **fields}
    found = asking.answered(thinker.http.post("/tokenize", json=body))
    used = thinker.see(*body["messages"], **fields)
    assert found["count"] == used.prompt_tokens
    assert thinker.continued(found["tokens"]).distance(used) < 1e-3


def test_no_page_may_read_answers_where_no_origin_was_named(thinker, origin):
    """H01: off by default, and this server was started without the option."""
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for answer in (
        thinker.http.request("OPTIONS", "/v1/chat/completions", headers=asked),
        thinker.http.get("/v1/models", headers={"Origin": origin}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]
