"""P07, P08, P11, P22 to P25, H12: plain prompts, and tokens for evaluators without a tokenizer."""

import pytest

from saccade_testing.public import asking, pictures

UNKNOWN = 2**31 - 1


def choices(answer):
    return [choice["text"] for choice in asking.answered(answer)["choices"]]


def tokens(demo, text, **more):
    body = {"model": demo.card["id"], "prompt": text, **more}
    return asking.answered(demo.http.post("/tokenize", json=body))["tokens"]


def test_a_prompt_may_be_text_or_tokens_one_or_several(demo):
    """P22. From vllm-project/vllm#186."""
    ids = tokens(demo, "There is")
    alone = choices(demo.complete("There is"))
    assert choices(demo.complete(["There is"])) == alone
    assert choices(demo.complete(ids)) == alone
    assert choices(demo.complete([ids])) == alone
    other = choices(demo.complete("Hi"))
    assert other != alone
    assert choices(demo.complete([ids, tokens(demo, "Hi")])) == [*alone, *other]
    assert choices(demo.complete(["Hi", "There is"])) == [*other, *alone]


EMPTY = {"null": None, "list": [], "lists": [[]], "object": {}, "number": 5, "true": True}


@pytest.mark.parametrize("name", EMPTY)
def test_a_prompt_of_nothing_is_refused(demo, name):
    """P23."""
    answer = demo.complete(EMPTY[name])
    asking.refused(answer, "prompt[0]" if name == "lists" else "prompt")


@pytest.mark.parametrize("prompt", [[UNKNOWN], [[UNKNOWN]], [5, -1]], ids=str)
def test_an_unknown_token_is_refused(demo, prompt):
    """P23."""
    answer = demo.complete(prompt)
    assert answer.json()["error"]["param"].startswith("prompt")
    asking.refused(answer, answer.json()["error"]["param"])


@pytest.mark.parametrize(
    "fields",
    [
        # vllm-project/vllm#2706
        {"suffix": None, "best_of": 1, "echo": False},
        {"suffix": ""},
        {"logprobs": None, "best_of": None, "echo": None},
        {"logprobs": False},
        # vllm-project/guidellm#308
        {"max_completion_tokens": 8},
        {"stop": None, "ignore_eos": False, "user": ""},
    ],
    ids=str,
)
def test_what_asks_for_nothing_changes_nothing(demo, fields):
    """P24."""
    answer = demo.complete("There is", **fields)
    assert choices(answer) == choices(demo.complete("There is"))
    assert answer.json()["choices"][0]["logprobs"] is None


def test_logprobs_as_a_switch_are_refused(demo):
    """P08. From jjang-ai/vmlx#99: here it is a number, and true could be any."""
    asking.refused(demo.complete("There is", logprobs=True), "logprobs")


def test_logprobs_of_one_are_the_tokens_own(demo):
    body = asking.answered(demo.complete("There is", logprobs=1, max_tokens=4))
    found = body["choices"][0]["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == 4
    for token, logprob, top in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert top == {token: logprob}


def test_a_prompt_is_echoed_with_its_log_probabilities(demo):
    """P07. From EleutherAI/lm-evaluation-harness#1411 and #4158, ggml-org/llama.cpp#27174: what
    multiple choice asks for, with a token that it throws away and without."""
    for length in (1, 0):
        fields = {"echo": True, "logprobs": 1, "max_tokens": length}
        (choice,) = asking.answered(demo.complete("There is", **fields))["choices"]
        found = choice["logprobs"]
        assert choice["text"].startswith("There is")
        assert [len(told) for told in found.values()] == [3 + length] * 4
        assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
        for logprob, top in zip(
            found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True
        ):
            assert logprob in top.values()


def test_log_probabilities_of_a_prompt_have_a_field_of_their_own(demo):
    """P07."""
    body = asking.answered(demo.complete("There is", prompt_logprobs=1))
    first, *others = body["choices"][0]["prompt_logprobs"]
    assert first is None
    assert len(others) == 2
    assert all(1 in [told["rank"] for told in one.values()] for one in others)


WAITING = {
    "P24-suffix": ({"suffix": "."}, "suffix"),
    "P30-best-of": ({"best_of": 4}, "best_of"),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_is_not_offered_is_refused_at_the_field(demo, name):
    fields, param = WAITING[name]
    asking.refused(demo.complete("There is", **fields), param, "unsupported_parameter")


def test_an_extra_body_in_the_body_is_refused_with_a_hint(demo):
    """P25. From sgl-project/sglang#20573, vllm-project/vllm#19177: it is the name of an argument of
    the client's, and what is in it would be left undone."""
    message = asking.refused(demo.chat("Hi", extra_body={"top_k": 20}), "extra_body")
    assert "extra_body" in message


TEXTS = ["There is", "", " a  b\n", "caf\u00e9 \u4f60\u597d \U0001f600", "a</s>", "a <image> b"]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_a_prompt_and_text_again(demo, text):
    """H12. From jjang-ai/vmlx#99, NVIDIA-NeMo/Gym#636."""
    body = {"model": demo.card["id"], "prompt": text}
    found = asking.answered(demo.http.post("/tokenize", json=body))
    assert found["count"] == len(found["tokens"])
    assert found["max_model_len"] == 2048
    back = demo.http.post("/detokenize", json={"model": demo.card["id"], "tokens": found["tokens"]})
    assert asking.answered(back)["prompt"].removeprefix("<s>").strip() == text.strip()
    if text and "<image>" not in text:  # no prompt: it has a place for an image and none
        used = asking.answered(demo.complete(text, max_tokens=1))["usage"]["prompt_tokens"]
        assert used == found["count"]


def test_the_tokens_of_a_chat_are_those_that_it_uses(demo):
    """H12. An image has one for every feature of it."""
    messages = [
        {"role": "system", "content": "a"},
        asking.user(asking.image(pictures.URL), asking.text("Hi")),
    ]
    body = {"model": demo.card["id"], "messages": messages}
    found = asking.answered(demo.http.post("/tokenize", json=body))
    assert found["count"] == len(found["tokens"]) == demo.see(*messages).prompt_tokens


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "gpt-4o"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [UNKNOWN]}, "tokens"),
    ],
    ids=str,
)
def test_tokens_of_nothing_are_refused(demo, path, body, param):
    """H12."""
    answer = demo.http.post(path, json=body)
    asking.refused(answer, param, status=404 if param == "model" else 400)
