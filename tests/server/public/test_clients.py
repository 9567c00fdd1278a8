"""What stock clients send first, as their own sources have it; each must be answered.

No client is installed here: the bodies are written down, fields that only one client sends
included.
"""

import pytest

from saccade_testing.public import asking

HI = [{"role": "user", "content": "Hi"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
SYSTEM = {"role": "system", "content": "Answer briefly."}

CHATS = {
    "litellm": {"messages": HI, "max_tokens": 5, "extra_body": {}, **USAGE},
    "langchain": {"messages": HI, "n": 1, "stream": False, "temperature": 0.7, "max_tokens": 8},
    "langchain-js-n8n": {
        "messages": HI,
        "temperature": 0.7,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "response_format": {"type": "text"},
        "max_completion_tokens": 8,
    },
    "llama-index": {"messages": HI, "stream": False, "temperature": 0.1, "max_tokens": None},
    "open-webui": {
        "messages": [SYSTEM, *PARTS],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 8,
        "metadata": None,
        "chat_id": "c",
        "session_id": "s",
        "features": {},
        "keep_alive": None,
    },
    "sillytavern": {
        "messages": [SYSTEM, {"role": "user", "content": "Hi", "name": "ann"}],
        "temperature": 1,
        "max_tokens": 8,
        "stream": True,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 1,
        "top_k": 0,
        "min_p": 0,
        "top_a": 0,
        "repetition_penalty": 1,
        "logit_bias": {},
        "stop": [],
        "n": 1,
        "seed": -1,
    },
    "continue": {
        "messages": [SYSTEM, *PARTS],
        "max_tokens": 16,
        "temperature": 0.01,
        "stop": [f"<|stop{at}|>" for at in range(15)],
        **USAGE,
    },
    "guidellm": {
        "messages": PARTS,
        "max_tokens": 4,
        "max_completion_tokens": 4,
        "stop": None,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "lm-eval": {
        "messages": [{"role": "user", "content": "Hi", "type": "text"}],
        "max_tokens": 8,
        "temperature": 0,
        "stop": ["\n\n"],
        "seed": 1234,
    },
    "dify": {
        "messages": [{"role": "user", "content": "ping"}],
        "max_tokens": 5,
        "stream": True,
        "temperature": 0.7,
        "chat_template_kwargs": {"enable_thinking": False},
        "user": "u",
    },
    "cline": {
        "messages": [
            SYSTEM,
            {"role": "user", "content": [{"type": "text", "text": "<task>\nHi\n</task>"}]},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": [{"type": "text", "text": "again"}]},
        ],
        "temperature": 0,
        "max_completion_tokens": 8,
        **USAGE,
    },
    "vercel-ai": {"messages": PARTS, "temperature": 0, "max_tokens": 8, **USAGE},
    "anythingllm": {"messages": [SYSTEM, *HI], "temperature": 0.7, "max_tokens": 8, "stream": True},
    "librechat": {"messages": HI, "user": "u", "stream": True, "temperature": 1, "stop": []},
    "promptfoo": {
        "messages": HI,
        "max_tokens": 8,
        "temperature": 0,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "stop": None,
    },
    "semantic-kernel": {"messages": PARTS, "max_completion_tokens": 8, "tool_choice": "none"},
    "spring-ai": {"messages": HI, "stream": False, "temperature": 0.7, "extra_body": None},
    "hugging-face": {
        "messages": HI,
        **dict.fromkeys(["frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n"]),
        **dict.fromkeys(["presence_penalty", "response_format", "seed", "stop", "temperature"]),
        **dict.fromkeys(["tool_choice", "tool_prompt", "tools", "top_logprobs", "top_p"]),
        "stream": False,
        "stream_options": None,
    },
    "crewai": {"messages": HI, "stop": ["\nObservation:"], "max_tokens": 8, "stream": False},
    "aider": {"messages": [SYSTEM, *HI], "temperature": 0, "max_tokens": 8, "stream": True},
}


@pytest.mark.parametrize("name", CHATS)
def test_the_first_chat_of_a_client_is_answered(demo, name):
    body = {"model": demo.card["id"], **CHATS[name]}
    if body.get("stream"):
        streamed = demo.stream_from("/v1/chat/completions", body)
        assert streamed.choices[-1]["finish_reason"] in ("stop", "length")
    else:
        choice = asking.answered(demo.http.post("/v1/chat/completions", json=body))["choices"][0]
        assert choice["finish_reason"] in ("stop", "length")


SAMPLERS = {
    # SillyTavern's text completion, every slider in its neutral place
    **{"temperature": 0, "top_p": 1, "typical_p": 1, "typical": 1, "sampler_seed": -1, "seed": -1},
    **{"min_p": 0, "repetition_penalty": 1, "frequency_penalty": 0, "presence_penalty": 0},
    **{"top_k": 0, "skew": 0, "min_tokens": 0, "length_penalty": 1, "early_stopping": False},
    **{"add_bos_token": True, "smoothing_factor": 0, "smoothing_curve": 1, "num_beams": 1},
    **{"dry_allowed_length": 2, "dry_multiplier": 0, "dry_base": 1.75, "max_tokens_second": 0},
    **{"sampler_priority": [], "samplers": [], "stopping_strings": [], "stop": []},
    **{"truncation_length": 2048, "ban_eos_token": False, "skip_special_tokens": True},
    **{"top_a": 0, "tfs": 1, "mirostat_mode": 0, "mirostat_tau": 5, "mirostat_eta": 0.1},
    **{"custom_token_bans": "", "banned_strings": [], "grammar_string": "", "json_schema": {}},
    **{"guided_grammar": "", "guided_json": {}, "best_of": 1, "ignore_eos": False, "n": 1},
    **{"spaces_between_special_tokens": True, "include_reasoning": True, "min_length": 0},
}

COMPLETIONS = {
    "sillytavern": {"prompt": "There is", "max_tokens": 8, "max_new_tokens": 8, **SAMPLERS},
    "dify": {"prompt": "There is", "max_tokens": 8, "stream": False, "temperature": 0},
    "lm-eval": {
        "prompt": ["There is"],
        "max_tokens": 8,
        "temperature": 0,
        "seed": 1234,
        "stop": ["zz"],
    },
    "llama-index": {"prompt": "There is", "max_tokens": 8, "temperature": 0, "stream": False},
    "guidellm": {
        "prompt": "There is",
        "max_tokens": 8,
        "max_completion_tokens": 8,
        "stop": None,
        "temperature": 0,
    },
    "langchain": {
        "prompt": ["There is"],
        "max_tokens": 8,
        "temperature": 0,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "n": 1,
        "best_of": 1,
        "logit_bias": {},
    },
    "vllm-bench": {
        "prompt": "There is",
        "temperature": 0,
        "repetition_penalty": 1.0,
        "max_tokens": 8,
        "logprobs": None,
        "stream": False,
        "ignore_eos": False,
    },
}


@pytest.mark.parametrize("name", COMPLETIONS)
def test_the_first_completion_of_a_client_is_the_plain_one(demo, name):
    answer = demo.http.post("/v1/completions", json={"model": demo.card["id"], **COMPLETIONS[name]})
    plain = asking.answered(demo.complete("There is"))["choices"][0]
    choice = asking.answered(answer)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (plain["text"], plain["finish_reason"])


def test_a_client_finds_the_model(demo):
    """LiteLLM, Open WebUI, AnythingLLM and guidellm list the models before anything else."""
    listed = demo.http.get("/v1/models").json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert {"id", "object", "created", "owned_by"} <= set(card)
    assert card["object"] == "model"
    assert demo.http.get(f"/v1/models/{card['id']}").json() == card


def test_the_headers_of_sdks_are_taken(demo):
    headers = {
        "authorization": "Bearer sk-none",
        "api-key": "none",
        "x-stainless-lang": "python",
        "x-stainless-retry-count": "0",
        "x-title": "Cline",
        "http-referer": "https://cline.bot",
        "openai-organization": "o",
        "accept": "text/event-stream",
        "accept-encoding": "gzip, br",
    }
    answer = demo.http.post("/v1/chat/completions", json=demo.body("Hi"), headers=headers)
    assert asking.content(answer) == asking.content(demo.chat("Hi"))
