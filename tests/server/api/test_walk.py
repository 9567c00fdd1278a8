"""Every field of every request has a verdict, and what the server does agrees with it.

A field is one of three things, value by value: it changes the outcome (what reaches the engine, or
what is answered), it is refused, or it changes nothing. What changes nothing is null, a value that
asks for what happens anyway (``default`` here), or is listed with its reason in noeffect.py and
named in a header. Whoever adds a field to a schema or to the tables of foreign.py adds its
verdict here.
"""

import copy
import typing

import msgspec
import pytest
from pydantic import BaseModel

from saccade_server.api.body.foreign import CHAT, COMPLETION, NOTHING, NULL_ONLY
from saccade_server.api.body.noeffect import IGNORED_HEADER, NO_EFFECT
from saccade_server.api.body.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ScoreRequest,
    TokenizeRequest,
    ValidateRequest,
)
from saccade_testing.api.bodies import PICTURE
from saccade_testing.api.server import start_server
from saccade_testing.api.structured_verdicts import OWNERS as STRUCTURES
from saccade_testing.api.structured_verdicts import STRUCTURED, structured_body
from saccade_testing.api.tool_verdicts import OWNERS as OFFERS
from saccade_testing.api.tool_verdicts import TOOLS, tool_body
from saccade_testing.api.trace_verdicts import TRACES, trace_body
from saccade_testing.api.verdicts import Verdict, number, switch

USER = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "There"}
CALL = {"id": "c", "function": {"name": "f", "arguments": {"x": 1}}}
ENTRY = {"method": "pasta", "highlight": ["i"], "layers": [0]}

ROUTES = {
    ChatRequest: ("/v1/chat/completions", {"messages": [USER], "seed": 1}),
    CompletionRequest: ("/v1/completions", {"prompt": "Hi", "seed": 1}),
    ValidateRequest: ("/v1/interventions/validate", {"interventions": [], "messages": [USER]}),
    ScoreRequest: ("/v1/score", {"messages": [USER], "continuations": ["a"]}),
    TokenizeRequest: ("/tokenize", {"messages": [USER]}),
    DetokenizeRequest: ("/detokenize", {"tokens": [72, 105]}),
}


NOWHERE = Verdict(no_effect=True)
PRIORITY = number([1, -1, -(2**31)], [0], [2**31, 1.5, True])

SAMPLED = {
    "max_tokens": number([1, 5], [], [0, -1, 1.5, 2**63, True]),
    "max_completion_tokens": number([1, 5], [], [0, -1, 1.5, 2**63, True]),
    "max_new_tokens": number([1, 5.0], [], [0, -1, 1.5, 2**63, True]),
    "min_tokens": number([1, 9], [0], [-1, 1.5, 600, True]),
    "temperature": number([0, 0.5, 2], [1, 1.0], [-1, 3, True]),
    "top_p": number([0, 0.5], [1], [-0.1, 1.1, True]),
    "top_k": number([1, 50], [0, -1], [-2, 1.5, True]),
    "detectors": Verdict(
        [[{"name": "svar"}]], [[]], ["svar", {}, [1], [{}], [{"name": "savr"}], 1, True]
    ),
    "min_p": number([0.1, 1], [0], [-0.1, 1.1, True]),
    "repetition_penalty": number([0.5, 2], [1], [0, 11, True]),
    "presence_penalty": number([-2, 1], [0], [3, True]),
    "frequency_penalty": number([-2, 1], [0], [3, True]),
    "n": number([2], [1], [0, -1, 17, 1.5, True]),
    "prompt_logprobs": number([0, 1, 20], [False], [21, -1, 1.5, True]),
    "seed": number([0, -1, 2**62], [1], [2**63, 1.5, True], null=False),
    "priority": PRIORITY,
    "stop": Verdict(["wor", ["x", "wor"]], [[]], ["", [""], [1], 5, {}, ["x"] * 65]),
    "stop_token_ids": Verdict([[5], [5, 6]], [[]], [[-1], [999], ["5"], 5, [5] * 129]),
    "ignore_eos": switch(),
    "logit_bias": Verdict([{"5": 1}, {"5": -100}], [{}], [{"x": 1}, {"999": 1}, {"5": 101}, []]),
    "stream": switch(),
    "trace": Verdict(
        [{"entropy": True}], [{}, {"entropy": False}], [True, [], "x", 5, {"x": True}]
    ),
    "stream_options": Verdict(default=[{}], refused=[5, [], "x"], beside={"stream": True}),
    **dict.fromkeys(
        (
            "user",
            "safety_identifier",
            "metadata",
            "service_tier",
            "prompt_cache_key",
            "prompt_cache_retention",
        ),
        NOWHERE,
    ),
}
SELECTING = {
    "model": Verdict(
        ["saccade-test+bundle"], ["saccade-test"], ["x", 5, ""], without=("interventions",)
    ),
    "interventions": Verdict([[ENTRY]], [[]], [5, {}, "x", [{}], [{"method": "x"}]]),
    "intervention_profile": Verdict(["bundle"], [""], ["x", 5], without=("interventions",)),
    "vllm_xargs": Verdict(
        [{"interventions": '[{"method": "pasta", "highlight": ["i"], "layers": [0]}]'}],
        [{}, {"interventions": None}, {"interventions": "[]"}],
        [{"x": 1}, {"interventions": "x"}, {"interventions": []}, [], 5],
        without=("interventions",),
    ),
}
TEMPLATED = {
    "add_generation_prompt": Verdict([False], [True], [1, "x"]),
    "continue_final_message": switch(beside={"messages": [USER, SAID]}),
    "chat_template_kwargs": Verdict(
        [{"mood": "dry"}, {"mood": [1, "x"]}, {"mood": False}],
        [{}, {"mood": None}, {"enable_thinking": False}],
        [{"x": 1}, {"mood": {}}, {"enable_thinking": True}, [], "x"],
    ),
    "enable_thinking": Verdict([], [False], [True, 1, "x"]),  # a template with it: test_messages
}
REASONED = {
    "HowMuch.reasoning_effort": Verdict(["none", "high"], [], ["", 1, "x" * 65, "false"]),
    "HowMuch.thinking": Verdict(
        [{"type": "disabled"}, {"type": "enabled"}, False, True],
        [],
        [{}, {"type": "x"}, {"type": "enabled", "budget_tokens": 5}, 1, "enabled"],
    ),
    "ThinkingSwitch.type": Verdict(["enabled", "disabled"], [], ["x", 5, None]),
    # What becomes of reasoning, where there is some: test_reasoning.
    "Shown.include_reasoning": Verdict([], [True, False], [1, "x"]),
    "Shown.separate_reasoning": Verdict([], [True, False], [1, "x"]),
}
VERDICTS = {
    **REASONED,
    **{f"Sampled.{name}": verdict for name, verdict in SAMPLED.items()},
    **{f"Selecting.{name}": verdict for name, verdict in SELECTING.items()},
    **{f"Templated.{name}": verdict for name, verdict in TEMPLATED.items()},
    "ChatRequest.messages": Verdict([[USER, SAID, USER]], [], [[], {}, "x", [{}]]),
    "ChatRequest.logprobs": switch(),
    "ChatRequest.top_logprobs": number([1, 20], [0], [21, -1, 1.5], beside={"logprobs": True}),
    "CompletionRequest.prompt": Verdict(
        ["a", ["a"], ["a", "b"], [1], [[1], [2, 3]]], [], [[], [[]], 5, {}, [1, "x"], [999]]
    ),
    "CompletionRequest.logprobs": number([0, 1, 20], [False], [21, -1, 1.5, True]),
    "CompletionRequest.echo": switch(),
    "CompletionRequest.add_special_tokens": Verdict([False], [True], [1, "x"]),
    "ValidateRequest.messages": Verdict([[USER, SAID, USER]], [], [[], {}, "x", [{}]], null=False),
    "ValidateRequest.prompt_tokens": Verdict([[1]], [], [[], {}, [999]], without=("messages",)),
    "ScoreRequest.prompt": Verdict(
        ["a", [1, 2]], [], [[], "", 5, {}, [1, "x"], [999], ["a"]], without=("messages",)
    ),
    "ScoreRequest.messages": Verdict([[USER, SAID, USER]], [], [[], {}, "x", [{}]], null=False),
    "ScoreRequest.continuations": Verdict(
        [["b"], ["a", "b"], [[1]], [[1, 2], "a"]],
        [],
        [[], [""], [[]], "a", [1], [[999]], [[-1]], {}, 5, [["a"]], ["a"] * 65],
        null=False,
    ),
    "ScoreRequest.add_special_tokens": Verdict(
        [False], [True], [1, "x"], without=("messages",), beside={"prompt": "Hi"}
    ),
    "ScoreRequest.priority": PRIORITY,
    "TokenizeRequest.model": Verdict([], ["saccade-test"], ["x", 5]),
    "TokenizeRequest.prompt": Verdict(["a"], [], [5, []], without=("messages",)),
    "TokenizeRequest.messages": Verdict([[USER, SAID, USER]], [], [[], {}, "x", [{}]], null=False),
    "TokenizeRequest.add_special_tokens": Verdict(
        [False], [True], [1], without=("messages",), beside={"prompt": "Hi"}
    ),
    "TokenizeRequest.return_token_strs": switch(),
    "DetokenizeRequest.model": Verdict([], ["saccade-test"], ["x", 5]),
    "DetokenizeRequest.tokens": Verdict([[], [1]], [], [[-1], [999], {}, "x"]),
    **TRACES,
    **STRUCTURED,
    **TOOLS,
    "StreamOptions.include_usage": switch(),
    "StreamOptions.continuous_usage_stats": switch(),
    "StreamOptions.include_obfuscation": NOWHERE,
    "ChatMessage.role": Verdict(["system", "assistant", "tool"], ["user"], ["robot", 5]),
    "ChatMessage.content": Verdict(
        ["x", [{"type": "text", "text": "x"}]], [], [5, {}, [{}], []], null=False
    ),
    "ChatMessage.name": Verdict(["ann"], [""], [5, "x" * 300]),
    "ChatMessage.refusal": Verdict(["no"], [""], [5, []]),
    "ChatMessage.reasoning": Verdict(["hm"], [""], [5, []]),
    "ChatMessage.reasoning_content": Verdict(["hm"], [""], [5, []]),
    "ChatMessage.tool_calls": Verdict([[CALL]], [[]], [{}, "x", [{}]]),
    "ChatMessage.tool_call_id": Verdict(["c"], [""], [5]),
    "TextPart.type": Verdict(refused=["x", 5, None]),
    "TextPart.text": Verdict(["x", ""], [], [5, None]),
    "ImagePart.type": Verdict(refused=["x", 5, None]),
    "ImagePart.image_url": Verdict(refused=["x", 5, {}, None]),
    "ImageUrl.url": Verdict(refused=["x", 5, "", None]),  # another one: test_media
    "ImageUrl.detail": NOWHERE,
    "RefusalPart.type": Verdict(refused=["x", 5, None]),
    "RefusalPart.refusal": Verdict(["x", ""], [], [5, None]),
    "ToolCall.id": Verdict(["d", ""], ["c"], [5], null=False),
    "ToolCall.type": Verdict([], ["function", ""], ["x", 5]),
    "ToolCall.function": Verdict([{"name": "g"}], [], ["x", {}, 5, None]),
    "FunctionCall.name": Verdict(["g"], [], ["", 5, None]),
    "FunctionCall.arguments": Verdict(
        [{}, {"x": 2}, '{"x": 3}', '{"x": 1', "[]"], [{"x": 1}, '{"x": 1}'], [5, []], null=False
    ),
}


ABSENT = object()
OWNERS = {
    "refusal": "assistant",
    "reasoning": "assistant",
    "reasoning_content": "assistant",
    "tool_calls": "assistant",
    "tool_call_id": "tool",
}
"""Field of a message -> the role of the message that it is tried in."""


def place(owner, name, value):
    """Fields of a chat, with ``value`` in the field ``name`` of a model inside the body."""
    if f"{owner}.{name}" in TRACES:
        return trace_body(owner, name, [] if value is ABSENT else [value])
    if owner in STRUCTURES:
        return structured_body(owner, name, [] if value is ABSENT else [value])
    if owner in OFFERS:
        return tool_body(owner, name, [] if value is ABSENT else [value])
    image = {"type": "image_url", "image_url": {"url": PICTURE}}
    call = copy.deepcopy(CALL)
    places = {
        "StreamOptions": {},
        "ThinkingSwitch": {},
        "ChatMessage": {"role": OWNERS.get(name, "user"), "content": "Hi"},
        "TextPart": {"type": "text", "text": "Hi"},
        "RefusalPart": {"type": "refusal", "refusal": "No."},
        "ImagePart": image,
        "ImageUrl": image["image_url"],
        "ToolCall": call,
        "FunctionCall": call["function"],
    }
    if value is not ABSENT:
        places[owner][name] = value
    if owner == "StreamOptions":
        return {"stream": True, "stream_options": places[owner]}
    if owner == "ThinkingSwitch":
        return {"thinking": places[owner]}
    answer = {"role": "tool", "tool_call_id": "c", "content": "1"}
    tooled = [USER, {"role": "assistant", "tool_calls": [call]}]
    if owner == "ChatMessage":
        return {"messages": [*tooled, places[owner]]}
    if owner in ("ToolCall", "FunctionCall"):
        return {"messages": [*tooled, answer]}
    if owner == "RefusalPart":
        return {"messages": [USER, {"role": "assistant", "content": [places[owner]]}]}
    return {"messages": [{"role": "user", "content": [places["TextPart"], image]}]}


def body_of(model, owner, name, value):
    _, base = ROUTES[model]
    if name not in model.model_fields or owner_of(model, name) != owner:
        return base | place(owner, name, value)
    verdict = VERDICTS[f"{owner}.{name}"]
    body = {key: kept for key, kept in base.items() if key not in verdict.without}
    body |= verdict.beside
    return body if value is ABSENT else body | {name: value}


def models_in(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def owner_of(model, name):
    """The class that declares a field."""
    return next(base for base in model.__mro__ if name in base.__annotations__).__name__


def all_fields():
    """Every field: the model of the request, the class that declares it, its name, its default."""
    waiting, seen = list(ROUTES), set()
    while waiting:
        model = waiting.pop(0)
        if model in seen:
            continue
        seen.add(model)
        for name, info in model.model_fields.items():
            route = model if model in ROUTES else ChatRequest
            yield route, owner_of(model, name), info.alias or name, not info.is_required()
            waiting.extend(models_in(info.annotation))


FIELDS = list(dict.fromkeys(all_fields()))  # kinds of traces inherit some


@pytest.fixture(scope="module")
def bundled():
    made = start_server(profiles={"bundle": {"interventions": [ENTRY]}})
    made.prompts.template_reads = frozenset({"name", "reasoning_content"})
    made.prompts.template_variables = ("mood", "reasoning_effort", "thinking")
    yield made
    made.stop()


def send(server, path, body):
    """The response, and its outcome: all that reached the engine, and all that was answered."""
    server.renew()
    answer = server.http.post(path, json=body)
    asked = [msgspec.to_builtins(request) for request in server.engine.requests]
    for request in asked:
        for name in ("request_id", "deadline", "origin"):  # of each request its own
            del request[name]
    events = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: ")]
    said = [msgspec.json.decode(event) for event in events[:-1]] or [answer.json()]
    for item in said:
        item.pop("id", None)
        item.pop("created", None)
    return answer, (answer.status_code, asked, said)


def test_every_field_has_a_verdict():
    assert {f"{owner}.{name}" for _, owner, name, _ in FIELDS} == set(VERDICTS)
    paths = {
        "StreamOptions": "stream_options.",
        "ImageUrl": "image_url.",
        "Sampled": "",
        "ChatRequest": "",
        "Structured": "",
        "StructuredOutputs": "structured_outputs.",
        "JsonSchemaFormat": "json_schema.",
    }
    without = [key.split(".") for key, verdict in VERDICTS.items() if verdict.no_effect]
    assert {paths[owner] + name for owner, name in without} == set(NO_EFFECT)


@pytest.mark.parametrize(
    ("model", "owner", "name", "optional"),
    FIELDS,
    ids=[f"{model.__name__}-{owner}.{name}" for model, owner, name, _ in FIELDS],
)
def test_a_field_does_what_its_verdict_says(bundled, model, owner, name, optional):
    verdict, (path, _) = VERDICTS[f"{owner}.{name}"], ROUTES[model]

    def tried(value):
        answer, found = send(bundled, path, body_of(model, owner, name, value))
        named = answer.headers.get(IGNORED_HEADER, "").split(".")[-1]
        return answer, found, named == name

    before, plain, _ = tried(ABSENT)
    for value in verdict.changes:
        answer, found, named = tried(value)
        assert (answer.status_code, named) == (200, False), (value, answer.text)
        assert found != plain, value
    for value in verdict.refused:
        answer, found, _ = tried(value)
        assert answer.status_code in (400, 404), (value, answer.text)
        assert answer.json()["error"]["param"], value
        assert not found[1], "it reached the engine"
    if before.status_code != 200:  # it cannot be left out there
        return
    for value in verdict.default + ([None] if optional and verdict.null else []):
        assert tried(value)[1] == plain, value
    for value in ("x", 1, True, {"a": 1}) if verdict.no_effect else ():
        _, found, named = tried(value)
        assert found == plain, value
        assert named, value


def harmless(values):
    if values is NULL_ONLY:
        return [None]
    by_default = any(value is True for value in values)
    return [None, True] if by_default else [*NOTHING, *values]


@pytest.mark.parametrize(("model", "table"), [(ChatRequest, CHAT), (CompletionRequest, COMPLETION)])
def test_features_of_other_servers_ask_for_nothing_or_are_refused(bundled, model, table):
    path, base = ROUTES[model]
    assert not table.keys() & model.model_fields.keys()
    _, plain = send(bundled, path, base)
    for name, values in table.items():
        for value in harmless(values):
            answer, found = send(bundled, path, base | {name: value})
            assert found == plain, (name, value)
            assert IGNORED_HEADER not in answer.headers, (name, value)
        off = [] if any(value is False for value in harmless(values)) else [False]
        for value in [{"x": 1}, "x", 17, *off]:
            answer, found = send(bundled, path, base | {name: value})
            assert answer.status_code == 400, (name, value)
            assert answer.json()["error"]["param"] == name
            assert not found[1]


def test_fields_that_nobody_knows_are_named(bundled):
    for model, (path, base) in ROUTES.items():
        answer, found = send(bundled, path, base | {"some_future_field": 1})
        if model in (ValidateRequest, ScoreRequest):
            assert answer.status_code == 400
            continue
        assert found == send(bundled, path, base)[1]
        assert answer.headers[IGNORED_HEADER] == "some_future_field"
