"""Bodies are read strictly, and refusals name the field without echoing it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from saccade_server.api.body.parsing import json_path, load, parse
from saccade_server.api.body.schemas import ChatRequest, CompletionRequest, ValidateRequest
from saccade_server.api.errors import BadRequest

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_json_is_json(value):
    assert load(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{} {}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "c": 2, "b": 3}}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b"[" * 100_000,
        b"[" * 80 + b"]" * 80,
        b'{"a":' * 100_000,
        '{"a": 1}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_not_read(body):
    with pytest.raises(BadRequest) as refused:
        load(body)
    assert refused.value.code == "invalid_json"
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null", b"true"])
def test_a_body_is_an_object(body):
    with pytest.raises(BadRequest):
        parse(body, ChatRequest)


CALL = {"type": "function", "function": {"name": "f"}}


def refuse(model, value):
    with pytest.raises(BadRequest) as refused:
        parse(json.dumps(value).encode(), model)
    return refused.value


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        (
            [{"role": "tool", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}],
            "messages[0].tool_calls",
        ),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "hologram"}]}], "messages[0].content[0]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": 5}]}],
            "messages[0].content[0].image_url",
        ),
    ],
)
def test_the_path_of_a_mistake(messages, param):
    assert refuse(ChatRequest, {"messages": messages}).param == param


def test_a_missing_field_is_called_missing():
    error = refuse(CompletionRequest, {})
    assert (error.code, error.param) == ("missing_field", "prompt")


def test_many_mistakes_give_a_short_answer():
    messages = [{"role": "x" * 1000, "content": {"y" * 1000: 1}}] * 1000
    error = refuse(ChatRequest, {"messages": messages})
    assert len(error.json()) < 2000
    assert error.message.count("messages[") == 2


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (ChatRequest, {"messages": [{}] * 300_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 300_000}]}),
        (ChatRequest, {"messages": [], "stop": [1] * 300_000}),
        (ChatRequest, {"messages": [], "stop_token_ids": [""] * 300_000}),
        (CompletionRequest, {"prompt": [""] + [1] * 300_000}),
        (CompletionRequest, {"prompt": [1] + [""] * 300_000}),
        (CompletionRequest, {"prompt": [[]] * 300_000}),
        (CompletionRequest, {"prompt": [[1] + [""] * 300_000]}),
        (ValidateRequest, {"interventions": [], "messages": [{}] * 300_000}),
        (ValidateRequest, {"interventions": [], "prompt_tokens": [""] * 300_000}),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_list_of_mistakes_stops_at_the_first(model, value):
    with pytest.raises(ValidationError) as refused:
        model.model_validate(value)
    assert refused.value.error_count() <= 4


def test_union_members_are_not_part_of_a_path():
    value = {"a": [{"b": 1}]}
    assert json_path(("a", "list", 0, "tagged", "b"), value) == "a[0].b"
    assert json_path(("a", 0, "c"), value, missing=True) == "a[0].c"
    assert json_path(("a", 7), value) == "a"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("x", ["x"]),
        (["x", "y"], ["x", "y"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_the_forms_of_a_prompt(prompt, prompts):
    assert parse(json.dumps({"prompt": prompt}).encode(), CompletionRequest).prompts == prompts


@pytest.mark.parametrize("prompt", [None, 1, [], [[]], ["x", 1], [1, "x"], [True], [-1], {}, [1.5]])
def test_what_is_no_prompt(prompt):
    assert refuse(CompletionRequest, {"prompt": prompt}).param.startswith("prompt")
