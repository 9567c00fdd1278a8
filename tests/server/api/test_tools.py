"""Tools over HTTP: what is offered reaches the prompt, what is called comes back."""

import json
from typing import Any

import pytest

from saccade_testing.api.bodies import chat_body
from saccade_testing.api.fakes import HERMES
from saccade_testing.api.server import Server

ZONES = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}


def tool(name: str = "now", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


NOW = tool(description="The time", parameters=ZONES)
WEATHER = tool("get_weather")
TWO = [NOW, WEATHER]
CALL = HERMES.write([("now", '{"zone": "UTC"}')])


def named(name: str = "now") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {
        "type": "allowed_tools",
        "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]},
    }


def prompt_of(server: Server, **fields: Any) -> str:
    server.renew()
    answer = server.chat(**fields)
    assert answer.status_code == 200, answer.text
    return bytes(token for token in server.engine.requests[0].tokens if token < 256).decode()


def refused(server: Server, **fields: Any) -> dict[str, Any]:
    answer = server.chat(**fields)
    assert answer.status_code == 400, answer.text
    assert not server.engine.requests
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_tools_stand_in_the_prompt_in_openais_form(server: Server) -> None:
    prompt = prompt_of(server, tools=[NOW, tool("f", strict=True)])
    function = {"name": "now", "description": "The time", "parameters": ZONES}
    bare = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    shown = [{"type": "function", "function": item} for item in (function, bare)]
    assert f"(tools: {json.dumps(shown)})" in prompt


@pytest.mark.parametrize("choice", [None, "auto", named(), "required", allowed("auto", "now")])
def test_all_tools_stand_in_the_prompt_whatever_may_be_called(server: Server, choice: Any) -> None:
    fields = {} if choice is None else {"tool_choice": choice}
    assert prompt_of(server, tools=TWO, **fields) == prompt_of(server, tools=TWO)


def test_tools_that_none_may_be_called_are_no_part_of_the_prompt(server: Server) -> None:
    server.engine.answer = CALL
    answer = server.chat(tools=TWO, tool_choice="none", parallel_tool_calls=False)
    (choice,) = answer.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    assert "tool_calls" not in choice["message"]
    assert answer.headers["x-saccade-ignored-fields"] == "tools, parallel_tool_calls"
    assert prompt_of(server, tools=TWO, tool_choice="none") == prompt_of(server)


def test_an_answer_that_calls(server: Server) -> None:
    server.engine.answer = f"Let me see.\n{CALL}\n{CALL}"
    answer = server.chat(tools=TWO)
    assert "x-saccade-ignored-fields" not in answer.headers
    (choice,) = answer.json()["choices"]
    first, second = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": "Let me see.", "refusal": None}
    assert choice["finish_reason"] == "tool_calls"
    function = {"name": "now", "arguments": '{"zone": "UTC"}'}
    assert first == {"id": first["id"], "type": "function", "function": function}
    assert first["id"] != second["id"]
    server.engine.answer = CALL
    message = server.chat(tools=TWO).json()["choices"][0]["message"]
    assert message["content"] is None


def test_an_answer_that_does_not_call(server: Server) -> None:
    (choice,) = server.chat(tools=TWO).json()["choices"]
    assert choice["message"]["content"] == "Hello, world!"
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_a_call_that_is_cut_off(server: Server) -> None:
    server.engine.answer = CALL
    cut = CALL.index("UTC")
    (choice,) = server.chat(tools=TWO, max_tokens=cut).json()["choices"]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"zone": "'


def test_a_stop_text_inside_a_call_ends_it(server: Server) -> None:
    server.engine.answer = CALL
    (choice,) = server.chat(tools=TWO, stop=["UTC"]).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["arguments"], choice["finish_reason"]) == ('{"zone": "', "tool_calls")


@pytest.mark.parametrize("n", [1, 2])
def test_calls_are_streamed(server: Server, n: int) -> None:
    server.engine.answer = f"Hm.\n{CALL}\n{CALL}"
    events = server.events(tools=TWO, n=n, stream_options={"include_usage": True})
    assert events.pop() == "[DONE]"
    assert events.pop()["usage"]["completion_tokens"] == n * (len(server.engine.answer) + 1)
    for index in range(n):
        deltas = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(d["delta"].get("content") or "" for d in deltas) == "Hm."
        pieces = [call for d in deltas for call in d["delta"].get("tool_calls", ())]
        for at in range(2):
            own = [piece for piece in pieces if piece["index"] == at]
            assert own[0]["id"].startswith("call_")
            assert (own[0]["type"], own[0]["function"]["name"]) == ("function", "now")
            assert all("id" not in piece and "name" not in piece["function"] for piece in own[1:])
            assert len(own) > 5, "arguments come as they are written"
            assert "".join(p["function"]["arguments"] for p in own) == '{"zone": "UTC"}'
        assert [d["finish_reason"] for d in deltas if d["finish_reason"]] == ["tool_calls"]


def test_what_came_back_goes_on(server: Server) -> None:
    server.engine.answer = CALL
    user = {"role": "user", "content": "Time?"}
    message = server.chat(messages=[user], tools=TWO).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "12:00"}
    prompt = prompt_of(server, messages=[user, message, result], tools=TWO)
    assert 'Call now: {"zone": "UTC"}' in prompt
    assert "Result of now: 12:00" in prompt


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tools": [NOW, WEATHER, NOW]}, "tools[2].function.name", "tools[0] has the name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name", ""),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name", ""),
        ({"tools": [tool("")]}, "tools[0].function.name", ""),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", '"function"'),
        ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters", ""),
        ({"tools": [tool("f", parameters={"type": "array"})]},
         "tools[0].function.parameters.type", "object"),
        ({"tools": [tool("f", strict="yes")]}, "tools[0].function.strict", ""),
        ({"tools": [tool(f"f{at}") for at in range(129)]}, "tools", "128"),
        ({"tools": NOW}, "tools", ""),
        ({"tools": TWO, "tool_choice": "always"}, "tool_choice", ""),
        ({"tools": TWO, "tool_choice": {"type": "tool"}}, "tool_choice", "allowed_tools"),
        ({"tools": TWO, "tool_choice": named("new")}, "tool_choice.function.name",
         'did you mean "now"?'),
        ({"tools": TWO, "tool_choice": named("zzzzzz")}, "tool_choice.function.name",
         "tools has now, get_weather."),
        ({"tools": TWO, "tool_choice": allowed("auto", "now", "x")},
         "tool_choice.allowed_tools.tools[1].function.name", "no tool"),
        ({"tools": TWO, "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools", ""),
        ({"tools": TWO, "tool_choice": allowed("none", "now")},
         "tool_choice.allowed_tools.mode", ""),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [], "tool_choice": named()}, "tool_choice", "needs tools"),
        ({"tools": TWO, "parallel_tool_calls": "no"}, "parallel_tool_calls", ""),
        ({"tools": [tool("f", description="x" * 3000)]}, "tools", "can hold"),
        ({"tools": TWO, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex",
         "goes with tools"),
        ({"tools": TWO, "tool_choice": "required", "ignore_eos": True}, "ignore_eos", ""),
        ({"functions": [{"name": "f"}]}, "functions", ""),
    ],
)  # fmt: skip
def test_bad_offers_are_refused(
    server: Server, fields: dict[str, Any], param: str, said: str
) -> None:
    error = refused(server, **fields)
    assert error["param"] == param
    assert said in error["message"]


def test_nothing_is_offered_by_nothing(server: Server) -> None:
    plain = prompt_of(server)
    for fields in ({"tools": []}, {"tools": None}, {"tool_choice": "auto"},
                   {"tool_choice": "none"}, {"tools": [], "tool_choice": "auto"}):  # fmt: skip
        assert prompt_of(server, **fields) == plain
        assert server.engine.requests[0].grammar is None


def test_a_model_without_tools(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "its chat template does not write tools into a prompt"
    monkeypatch.setattr(server.prompts, "tools_refused", reason)
    error = refused(server, tools=TWO)
    assert (error["code"], error["param"]) == ("unsupported_tools", "tools")
    assert error["message"] == f"The served model calls no tools: {reason}."
    assert server.chat(tools=TWO, tool_choice="none").status_code == 200
    for path, body in (
        ("/tokenize", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/interventions/validate", {"interventions": [], **chat_body()}),
    ):
        answer = server.http.post(path, json=body | {"tools": TWO})
        assert answer.json()["error"]["code"] == "unsupported_tools"
    assert server.http.get("/v1/models").json()["data"][0]["accepts_tools"] is False


def test_models_say_whether_they_call_tools(server: Server) -> None:
    assert server.http.get("/v1/models").json()["data"][0]["accepts_tools"] is True


def test_tools_count_in_tokenize_and_validate(server: Server) -> None:
    length = len(prompt_of(server, tools=TWO).encode())
    tokenized = server.http.post("/tokenize", json=chat_body(tools=TWO))
    assert tokenized.json()["count"] == length
    hidden = server.http.post("/tokenize", json=chat_body(tools=TWO, tool_choice="none"))
    assert hidden.json()["count"] == len(prompt_of(server).encode())
    valid = chat_body(tools=TWO, interventions=[])
    answer = server.http.post("/v1/interventions/validate", json=valid)
    assert answer.json()["prompt_tokens"] == length
    plain = server.http.post("/tokenize", json={"prompt": "x", "tools": TWO})
    assert plain.json()["error"]["param"] == "tools"


def test_spans_of_texts_are_where_they_stand_beside_tools(server: Server) -> None:
    entry = {"method": "pasta", "highlight": ["this day"], "layers": [0]}
    messages = [{"role": "user", "content": "What is the time on this day?"}]
    tools = [tool(description="Über alles: the day", parameters=ZONES)]
    body = {"messages": messages, "tools": tools, "interventions": [entry]}
    prompt = prompt_of(server, **body).encode()
    (request,) = server.engine.requests
    place = prompt.index(b"this day")
    assert request.plan is not None
    tagged = {at for run in request.plan.tags for at in range(run.start, run.end)}
    assert set(range(len(prompt))) - tagged == set(range(place, place + len("this day")))
