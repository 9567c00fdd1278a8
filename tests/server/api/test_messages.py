"""Messages as clients send and replay them, and where a prompt ends."""

import pytest

from saccade_testing.api.bodies import PICTURE, image_messages
from saccade_testing.api.server import Server

CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
USER = {"role": "user", "content": "Hi"}


def prompt_of(server, **fields):
    """The text of the prompt that reached the engine."""
    answer = server.chat(**fields)
    assert answer.status_code == 200, answer.text
    return bytes(server.engine.requests[-1].tokens).decode()


def refused(server, **fields):
    answer = server.chat(**fields)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def test_an_answers_own_message_comes_back(server: Server):
    message = server.chat().json()["choices"][0]["message"]
    nulls = "refusal annotations audio function_call tool_calls tool_call_id name reasoning_content"
    replayed = dict.fromkeys(nulls.split()) | message
    assert (
        prompt_of(server, messages=[USER, replayed, USER])
        == "<user>Hi<assistant>Hello, world!<user>Hi<assistant>"
    )


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
def test_an_assistant_may_say_nothing(server: Server, content):
    messages = [USER, {"role": "assistant", **content}, USER]
    assert prompt_of(server, messages=messages) == "<user>Hi<assistant><user>Hi<assistant>"


@pytest.mark.parametrize("role", ["system", "developer", "user"])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": []}])
def test_others_say_something(server: Server, role, content):
    error = refused(server, messages=[USER, {"role": role, **content}])
    assert error["param"] == "messages[1].content"


@pytest.mark.parametrize(
    "said",
    [
        {"content": None, "refusal": "I cannot."},
        {"refusal": "I cannot."},
        {"content": [{"type": "refusal", "refusal": "I cannot."}]},
    ],
)
def test_a_refusal_is_what_was_said(server: Server, said):
    messages = [USER, {"role": "assistant", **said}, USER]
    assert "<assistant>I cannot.<user>" in prompt_of(server, messages=messages)


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
@pytest.mark.parametrize("arguments", ['{"zone": "UTC"}', {"zone": "UTC"}])
def test_a_history_of_tools(server: Server, content, arguments):
    call = {**CALL, "function": {"name": "now", "arguments": arguments}}
    messages = [
        USER,
        {"role": "assistant", "tool_calls": [call], **content},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
        USER,
    ]
    assert prompt_of(server, messages=messages) == (
        '<user>Hi<assistant>Call now: {"zone": "UTC"}<user>Result of now: 12:00Hi<assistant>'
    )


@pytest.mark.parametrize("arguments", [None, "", " ", "null", " null\n", "{}"])
def test_a_call_without_arguments(server: Server, arguments):
    call = {"function": {"name": "now", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}, USER]
    assert "Call now: {}" in prompt_of(server, messages=messages)


@pytest.mark.parametrize(
    "arguments", ['{"zone": "UT', "[]", "5", '{"a": 1, "a": 2}', '{"a": NaN}', "nul", "{'a': 1}"]
)
def test_arguments_that_are_no_object_are_the_text_that_was_written(server: Server, arguments):
    """A model that max_tokens cut off wrote them, and the client cannot mend what it replays."""
    call = {"function": {"name": "now", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}, USER]
    assert f"<assistant>Call now: {arguments}<user>" in prompt_of(server, messages=messages)


@pytest.mark.parametrize("arguments", [5, True, [1]])
def test_arguments_are_an_object_or_a_text(server: Server, arguments):
    call = {"function": {"name": "now", "arguments": arguments}}
    error = refused(server, messages=[USER, {"role": "assistant", "tool_calls": [call]}])
    assert error["param"] == "messages[1].tool_calls[0].function.arguments"


def test_roles_are_listed(server: Server):
    error = refused(server, messages=[USER, {"role": "function", "name": "f", "content": "1"}])
    assert error["param"] == "messages[1].role"
    assert '"system", "developer", "user", "assistant" or "tool"' in error["message"]


def test_a_url_without_its_object_is_taken(server: Server):
    (message,) = image_messages(PICTURE)
    whole = server.chat(messages=[message])
    message["content"][0]["image_url"] = PICTURE
    assert server.chat(messages=[message]).json()["usage"] == whole.json()["usage"]


def test_what_a_union_expects(server: Server):
    for fields, expected in (
        ({"stop": 5}, "a text or a list is expected"),
        ({"messages": [{"role": "user", "content": 5}]}, "a text or a list is expected"),
    ):
        assert expected in refused(server, **fields)["message"]


def test_a_part_may_have_the_fields_of_all_parts(server: Server):
    """SDKs with one class for all of them write every field; the type decides."""
    nulls = dict.fromkeys(["text", "refusal", "image_url", "input_audio", "file"])
    for image_url in ({"url": PICTURE}, PICTURE):
        image = {**nulls, "type": "image_url", "image_url": image_url}
        content = [{**nulls, "type": "text", "text": "a"}, image, image | {"text": "x"}]
        assert server.chat(messages=[{"role": "user", "content": content}]).status_code == 200
        assert len(server.engine.requests[-1].images) == 2


def test_an_empty_name_is_none(server: Server):
    fields = {"name": "", "tool_call_id": ""}
    assert prompt_of(server, messages=[USER | fields]) == "<user>Hi<assistant>"


def test_a_part_names_its_type(server: Server):
    error = refused(server, messages=[{"role": "user", "content": [{"text": "x"}]}])
    assert error["message"] == "messages[0].content[0] must name its type."


def test_types_of_parts_are_listed(server: Server):
    error = refused(server, messages=[{"role": "user", "content": [{"type": "input_text"}]}])
    assert error["param"] == "messages[0].content[0]"
    assert '"text", "image_url", "refusal"' in error["message"]


@pytest.mark.parametrize("name", ["function_call", "audio"])
def test_what_is_not_read_of_a_message(server: Server, name):
    message = {"role": "assistant", "content": "x", name: {"name": "f"}}
    error = refused(server, messages=[USER, message])
    assert (error["code"], error["param"]) == ("unsupported_parameter", f"messages[1].{name}")


PREFILL = [USER, {"role": "assistant", "content": "There"}]


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "There<assistant>"),
        ({"add_generation_prompt": True}, "There<assistant>"),
        ({"add_generation_prompt": False}, "There"),
        ({"continue_final_message": True}, "There|"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "There|"),
        ({"continue_final_message": False}, "There<assistant>"),
    ],
)
def test_where_a_prompt_ends(server: Server, fields, end):
    assert prompt_of(server, messages=PREFILL, **fields) == f"<user>Hi<assistant>{end}"


def test_a_prompt_has_one_end(server: Server):
    error = refused(
        server, messages=PREFILL, continue_final_message=True, add_generation_prompt=True
    )
    assert error["param"] == "continue_final_message"


def test_variables_of_the_template(server: Server):
    assert prompt_of(server, chat_template_kwargs={"mood": "dry"}).startswith("(mood: dry)")
    for value in (1, 0.5, True, ["a", 1], None, False):
        prompt_of(server, chat_template_kwargs={"mood": value})
    card = server.http.get("/v1/models").json()["data"][0]
    assert card["chat_template_variables"] == ["mood"]


@pytest.mark.parametrize(
    ("kwargs", "code", "where"),
    [
        ({"tone": "dry"}, "unsupported_parameter", ".tone"),
        ({"messages": []}, "unsupported_parameter", ".messages"),
        ({"tools": []}, "unsupported_parameter", ".tools"),
        ({"add_generation_prompt": False}, "unsupported_parameter", ".add_generation_prompt"),
        ({"bos_token": "x"}, "unsupported_parameter", ".bos_token"),
        ({"enable_thinking": True}, "unsupported_parameter", ".enable_thinking"),
        ({"mood": {"a": 1}}, "invalid_value", ".mood"),
        ({"mood": [[1]]}, "invalid_value", ".mood"),
        ({"mood": ["a"] * 65}, "invalid_value", ".mood"),
        ({"mood": "x" * 1025}, "invalid_value", ".mood"),
        ({"mood": 10**9}, "invalid_value", ".mood"),
        ({str(i): 1 for i in range(33)}, "invalid_value", ""),
        ([], "invalid_value", ""),
    ],
)
def test_other_variables_are_refused(server: Server, kwargs, code, where):
    error = refused(server, chat_template_kwargs=kwargs)
    assert (error["code"], error["param"]) == (code, f"chat_template_kwargs{where}")


def test_thinking_is_switched_where_there_is_a_switch(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    answer = server.chat(enable_thinking=False)
    assert answer.headers["x-saccade-ignored-fields"] == "enable_thinking"
    monkeypatch.setattr(server.prompts, "knows_thinking", True, raising=False)
    for fields in (
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "none"},
        {"thinking": {"type": "disabled"}},
        {"thinking": False},
    ):
        assert refused(server, **fields)["code"] == "unsupported_parameter"
    monkeypatch.setattr(server.prompts, "template_variables", ("enable_thinking",), raising=False)
    wanted = "(enable_thinking: False)"
    assert prompt_of(server, enable_thinking=False).startswith(wanted)
    both = {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": False}}
    assert prompt_of(server, **both).startswith(wanted)
    error = refused(server, **(both | {"enable_thinking": True}))
    assert error["param"] == "enable_thinking"
