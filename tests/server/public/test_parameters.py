"""P01 to P16, P19, P29: fields that ask for nothing special, as clients send them."""

import re

import pytest

from saccade_testing.public import asking, pictures

HI = {"role": "user", "content": "Hi"}

NULLS = [
    *("seed", "stop", "n", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "logit_bias", "top_logprobs", "user", "stream", "stream_options"),
    *("tools", "tool_choice", "response_format", "max_completion_tokens", "parallel_tool_calls"),
    *("store", "metadata", "service_tier", "reasoning_effort", "functions", "function_call"),
    *("modalities", "audio", "prediction", "verbosity", "web_search_options", "interventions"),
    *("intervention_profile", "vllm_xargs", "chat_template_kwargs", "continue_final_message"),
    *("add_generation_prompt", "min_tokens", "stop_token_ids", "ignore_eos", "safety_identifier"),
    *("prompt_cache_key", "echo", "best_of", "guided_json", "extra_headers"),
]


TOOL = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}

NO_CHANGE = {
    # microsoft/TaskWeaver#231, huggingface/text-generation-inference#2228: OpenAI's range is 0 to 1
    "P01-top-p-0": {"top_p": 0},
    "P02-null": dict.fromkeys(NULLS),  # vllm-project/vllm#29185
    "P02-null-one-by-one": {"stop": [], "logit_bias": {}, "metadata": {}, "tools": []},
    "P04-no-stop": {"stop": []},
    "P05-twelve-stops": {"stop": [f"stop{at}" for at in range(12)]},
    "P06-equal-limits": {"max_completion_tokens": 16},
    "P06-new-name": {"max_tokens": ..., "max_completion_tokens": 16},
    # OpenAI documents none as: no tool is called.
    "P15-tools-unused": {"tools": [TOOL], "tool_choice": "none"},
    "P15-functions-unused": {"functions": [TOOL["function"]], "function_call": "none"},
    # vllm-project/vllm#9451, #10463
    "P16-bookkeeping": {
        "parallel_tool_calls": False,
        "user": "u-1",
        "metadata": {"run": "7"},
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "store": False,
    },
    "P18-no-thinking": {"chat_template_kwargs": {"enable_thinking": False}},
    # NVIDIA-NeMo/Skills#652: what user interfaces send as defaults
    "P29-interface": {
        "top_k": -1,
        "min_p": 0,
        "repetition_penalty": 1,
        "typical_p": 1,
        "length_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
    },
    "P29-top-k-0": {"top_k": 0, "top_p": 1, "n": 1, "seed": 0, "min_tokens": 0},
}


NO_CHANGE |= {
    # What vLLM, SGLang and llama.cpp document as their defaults, written out.
    "P29-vllm": {
        **{"top_logprobs": 0, "stop": [], "stop_token_ids": [], "bad_words": []},
        **{"tool_choice": "none", "parallel_tool_calls": True, "use_beam_search": False},
        **{"length_penalty": 1.0, "include_stop_str_in_output": False, "echo": False},
        **{"skip_special_tokens": True, "spaces_between_special_tokens": True, "priority": 0},
        **{"add_generation_prompt": True, "continue_final_message": False, "request_id": "abc"},
        **{"add_special_tokens": False, "documents": None, "include_reasoning": True},
    },
    "P29-sglang": {
        **{"no_stop_trim": False, "separate_reasoning": False, "stream_reasoning": True},
        **{"return_hidden_states": False, "regex": None, "ebnf": None, "rid": None, "top_k": -1},
    },
    "P29-llama-cpp": {
        **{"cache_prompt": True, "samplers": "edkypmxt", "dynatemp_range": 0, "typ_p": 1},
        **{"repeat_last_n": 64, "repeat_penalty": 1, "mirostat": 0, "n_predict": -1},
        **{"dry_multiplier": 0, "xtc_probability": 0, "timings_per_token": False},
    },
    "P06-another-name": {"max_new_tokens": 16},
    "P16-empty-extra-body": {"extra_body": {}},
    "P26-whole-floats": {"max_tokens": 16.0, "seed": 1.0, "n": 1.0, "top_k": 0.0},
}


@pytest.fixture(scope="module")
def plain(demo):
    return demo.look(pictures.URL)


@pytest.mark.parametrize("name", NO_CHANGE)
def test_what_asks_for_nothing_changes_nothing(demo, plain, name):
    assert demo.look(pictures.URL, **NO_CHANGE[name]).distance(plain) < 1e-5


def test_what_nobody_reads_is_named(demo):
    """A header says which fields changed nothing, so that a misspelt one is found."""
    answer = demo.chat(HI, temprature=0.5, user="u", keep_alive="5m", seed=None)
    named = answer.headers["x-saccade-ignored-fields"].split(", ")
    assert sorted(named) == ["keep_alive", "temprature", "user"]
    assert "x-saccade-ignored-fields" not in demo.chat(HI, stop=[], n=1).headers


def test_null_means_the_default(demo):
    """P02, the fields that have no neutral value."""
    sampled = demo.chat(HI, temperature=None, max_tokens=None, seed=1)
    assert asking.content(sampled) == asking.content(
        demo.chat(HI, temperature=1, max_tokens=..., seed=1)
    )


@pytest.mark.parametrize("seed", [-1, 0, 2**53, -(2**63), 2**63 - 1])
def test_every_seed_draws_the_same_twice(demo, seed):
    """P03. From vllm-project/vllm#29185, SillyTavern/SillyTavern#2266."""
    one, two = (demo.look(pictures.PALE, seed=seed, temperature=1.3) for _ in range(2))
    assert one.distance(two) < 1e-4


STOPS = {
    # bentoml/OpenLLM#878, EuroEval/EuroEval#560
    "P04-text": "circle",
    "P04-list": ["circle"],
    # SillyTavern/SillyTavern#1844, continuedev/continue#2461, QwenLM/Qwen-Agent#228,
    # BerriAI/litellm#18921, langchain-ai/langchain#20234: OpenAI takes four, local servers more
    "P05-fifth": [*(f"stop{at}" for at in range(4)), "circle"],
    "P05-sixteenth": [*(f"stop{at}" for at in range(15)), "circle"],
    "P05-twice": ["circle", "circle", "circle"],
}


@pytest.mark.parametrize("name", STOPS)
def test_each_of_the_stop_texts_stops(demo, name):
    question = asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION))
    choice = asking.answered(demo.chat(question, stop=STOPS[name]))["choices"][0]
    assert choice["message"]["content"] == "There is a red "
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("stop", "param"), [("", "stop"), ([""], "stop[0]"), (["a", 5], "stop[1]")]
)
def test_an_empty_stop_text_is_refused_at_its_place(demo, stop, param):
    """P04. It would be found everywhere."""
    asking.refused(demo.chat(HI, stop=stop), param)


def test_the_first_word_may_stop_the_answer(demo):
    """P31. From vllm-project/vllm#11089."""
    question = asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION))
    body = asking.answered(demo.chat(question, stop="There"))
    assert body["choices"][0]["message"]["content"] == ""
    assert body["choices"][0]["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["completion_tokens"] >= 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_twenty_alternatives_are_given_and_no_more(demo):
    """P09. From vllm-project/vllm#16540."""
    answer = asking.answered(demo.chat(HI, logprobs=True, top_logprobs=20, max_tokens=2))
    for entry in answer["choices"][0]["logprobs"]["content"]:
        found = [item["logprob"] for item in entry["top_logprobs"]]
        assert len(found) == 20
        assert found == sorted(found, reverse=True)
        assert entry["logprob"] in found
    asking.refused(demo.chat(HI, logprobs=True, top_logprobs=21), "top_logprobs", says="20")
    asking.refused(demo.chat(HI, top_logprobs=2), "top_logprobs", says="logprobs")


def test_stream_options_need_a_stream(demo):
    """P12. From tjardoo/openai-client#140."""
    answer = demo.chat(HI, stream_options={"include_usage": True})
    asking.refused(answer, "stream_options", says="stream")


WAITING = {
    # Features with an issue of their own; until then they are refused at the field. When one comes,
    # its line here becomes a test of what it does.
    "P14-functions": ({"functions": [TOOL["function"]]}, "functions"),
    # vllm-project/vllm#22809: a model without reasoning
    "P19-effort": ({"reasoning_effort": "low"}, "reasoning_effort"),
    "P30-beams": ({"use_beam_search": True}, "use_beam_search"),
    "P30-num-beams": ({"num_beams": 5}, "num_beams"),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_is_not_offered_is_refused_at_the_field(demo, name):
    """P30 from SillyTavern/SillyTavern#2266, shikiw/OPERA#15: never answered without."""
    fields, param = WAITING[name]
    asking.refused(demo.chat(HI, **fields), param, "unsupported_parameter")


TOOLS = {
    # vllm-project/vllm#8088, langchain-ai/langchain#23814; models with tools: test_tool_calls.py
    "P14-auto": {"tool_choice": "auto"},
    "P14-default": {},
    "P14-required": {"tool_choice": "required"},
    "P14-named": {"tool_choice": {"type": "function", "function": {"name": "now"}}},
}


@pytest.mark.parametrize("name", TOOLS)
def test_a_model_whose_template_has_no_tools_refuses_them(demo, name):
    answer = demo.chat(HI, tools=[TOOL], **TOOLS[name])
    asking.refused(answer, "tools", "unsupported_tools", says="template")


OUT_OF_RANGE = {
    # hiyouga/LlamaFactory#10709
    "P26-n": ({"n": 99}, "n"),
    "P26-n-0": ({"n": 0}, "n"),
    "P26-max-tokens": ({"max_tokens": -1}, "max_tokens"),
    "P26-temperature": ({"temperature": 3}, "temperature"),
    "P26-negative-temperature": ({"temperature": -0.1}, "temperature"),
    "P26-top-p": ({"top_p": 1.5}, "top_p"),
    "P26-negative-top-p": ({"top_p": -0.1}, "top_p"),
    "P26-text": ({"temperature": "0.5"}, "temperature"),
    "P26-true": ({"max_tokens": True}, "max_tokens"),
    "P26-half": ({"max_tokens": 1.5}, "max_tokens"),
    # vllm-project/vllm#16529, openai/openai-python#572
    "P20-unknown-token": ({"logit_bias": {str(2**31 - 1): 5}}, "logit_bias"),
    "P20-word": ({"logit_bias": {"hello": 5}}, "logit_bias"),
    "P20-negative": ({"logit_bias": {"-1": 5}}, "logit_bias"),
    "P20-list": ({"logit_bias": [5]}, "logit_bias"),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_at_the_field(demo, name):
    fields, param = OUT_OF_RANGE[name]
    error = demo.chat(HI, **fields).json()["error"]
    assert error["param"].split(".")[0] == param
    asking.refused(demo.chat(HI, **fields), error["param"])


def test_more_than_the_context_holds_is_refused_with_the_numbers(demo):
    """P27. From InternLM/lmdeploy#2382, zai-org/GLM-OCR#106."""
    prompt = demo.see(HI).prompt_tokens
    for name in ("max_tokens", "max_completion_tokens"):
        answer = demo.chat(HI, **{"max_tokens": ..., name: 100_000})
        message = asking.refused(answer, name, "context_length_exceeded")
        assert [str(prompt), "100000", "2048"] == re.findall("[0-9]+", message)


def test_a_bias_moves_the_answer(demo):
    """P20. Ids come as texts, as JSON has no other keys."""
    body = {"model": demo.card["id"], "prompt": " circle"}
    token = asking.answered(demo.http.post("/tokenize", json=body))["tokens"][-1]
    plain = asking.content(demo.chat(HI, max_tokens=1))
    biased = demo.chat(HI, logit_bias={str(token): 100, "6": 1.5, "007": -100}, max_tokens=1)
    assert asking.content(biased).strip() == "circle" != plain
    banned = demo.chat(HI, logit_bias={str(token): -100}, max_tokens=1)
    assert asking.content(banned) == plain


def test_min_tokens_holds_the_end_back(demo):
    """P21. From vllm-project/vllm#8769 and #1945, modelscope/evalscope#404."""
    question = asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION))
    plain = asking.answered(demo.chat(question, max_tokens=20))
    assert plain["usage"]["completion_tokens"] < 14
    for least in (14, 20):
        body = asking.answered(demo.chat(question, min_tokens=least, max_tokens=20))
        assert least <= body["usage"]["completion_tokens"] <= 20
        assert body["choices"][0]["message"]["content"].startswith(
            plain["choices"][0]["message"]["content"]
        )
    asking.refused(demo.chat(question, min_tokens=21, max_tokens=20), "min_tokens")


@pytest.mark.parametrize("temperature", [1e-3, 1e-5, 1e-12, 1e-300])
def test_a_tiny_temperature_is_nearly_greedy(demo, temperature):
    """P32. From vllm-project/vllm#3063 and #2937, NVIDIA/TensorRT-LLM#15715."""
    greedy = demo.look(pictures.PALE)
    assert demo.look(pictures.PALE, temperature=temperature, seed=1).text == greedy.text
