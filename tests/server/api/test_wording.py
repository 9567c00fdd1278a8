"""Refusals are this project's sentences: no phrase of pydantic's reaches a user."""

import json
import re
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saccade_interventions.errors import InterventionError
from saccade_interventions.registry import Registry
from saccade_interventions.wording import FOREIGN, SENTENCES, about
from saccade_server.api.body.parsing import parse
from saccade_server.api.body.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    ValidateRequest,
)
from saccade_server.api.errors import BadRequest

FOREIGN_PHRASES = re.compile(
    r"Input |[Ff]ield required|should (be|have|match|end|not)|[Ee]xtra inputs|permitted|"
    r"[Vv]alue error|validation error|valid (string|integer|number|boolean|list|dictionary|dict)|"
    r"using|discriminator|\btags?\b|union|pydantic|[Uu]nable to|instance of|Decimal|"
    r"\b(str|int|float|bool|dict|NoneType|None|True|False)\b|(?<!\w)'"
)
WRONG = [
    None, True, 0, -1, 1.5, 1e300, 2**70, "", "x", "x" * 3000, [], [None], [[]], [True], [1.5],
    [-1], [-1, -2], ["x"] * 5000, [1] * 5000, {}, {"x": 1}, {"1": []}, {"1": [-1]}, {"5": "x"},
    [{}], [{"type": "x"}], [{"role": "x"}], [{"role": "user"}],
    [{"role": "user", "content": [{}]}],
    [{"role": "user", "content": [{"type": "x"}]}], [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "text", "text": 5}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
    [{"role": "assistant", "tool_calls": [{"type": "x", "function": 5}]}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "", "arguments": 5}}]}],
    [{"role": "assistant", "tool_calls": {}, "name": 5, "refusal": 5}],
]  # fmt: skip
BODIES = (ChatRequest, CompletionRequest, ValidateRequest, TokenizeRequest, DetokenizeRequest)
METHODS = Registry.discover().methods


def check(message):
    assert not FOREIGN_PHRASES.search(message), message
    assert "\n" not in message


@pytest.mark.parametrize("model", BODIES, ids=lambda model: model.__name__)
def test_every_field_of_a_body(model):
    base = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "tokens": [1]}
    base = {name: value for name, value in base.items() if name in model.model_fields}
    messages = []
    for name in [*model.model_fields, "unknown", "stream_options"]:
        for value in [*WRONG, {"include_usage": 5}]:
            try:
                parse(json.dumps(base | {name: value}).encode(), model)
            except BadRequest as error:
                messages.append(error.message)
    for message in messages:
        check(message)
        assert message.endswith(".")
    assert len(messages) > 20


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_a_method(method):
    kind, registry = METHODS[method], Registry(METHODS.values())
    refused = 0
    for name in [*kind.model_fields, "unknown"]:
        for value in WRONG if name != "method" else []:
            try:
                registry.parse([{**kind.example, name: value}])
            except InterventionError as error:
                refused += 1
                check(error.message)
    assert refused > 20


class Everything(BaseModel):
    """A field for most types of error that a schema can be made to have."""

    model_config = ConfigDict(strict=True, extra="forbid")

    a: Annotated[int, Field(ge=1, le=2)] = 1
    b: Annotated[float, Field(gt=1, lt=2, allow_inf_nan=False)] = 1.5
    c: Annotated[str, Field(min_length=2, max_length=3, pattern="^x+$")] = "xx"
    d: Annotated[list[int], Field(min_length=1, max_length=2)] = [1]
    e: Annotated[int, Field(multiple_of=5)] = 5
    f: Literal["x", "y"] = "x"
    g: bool = True
    h: dict[str, int] = {}
    i: tuple[int, ...] = ()
    j: None = None
    k: set[int] = set()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a", 0, "a must be at least 1"),
        ("a", 3, "a must be at most 2"),
        ("a", 1.5, "a must be a whole number"),
        ("a", "1", "a must be a whole number"),
        ("b", 1, "b must be more than 1"),
        ("b", 2.5, "b must be less than 2"),
        ("b", float("nan"), "b must be a finite number"),
        ("b", "x", "b must be a number"),
        ("c", "x", "c must have at least 2 characters"),
        ("c", "xxxx", "c may have at most 3 characters"),
        ("c", "yy", "c does not have the form ^x+$"),
        ("c", 5, "c must be a text"),
        ("d", [], "d must have at least 1 entry"),
        ("d", [1, 2, 3], "d may have at most 2 entries"),
        ("d", 5, "d must be a list"),
        ("e", 6, "e must be a multiple of 5"),
        ("f", "z", 'f must be "x" or "y"'),
        ("g", 1, "g must be true or false"),
        ("h", 5, "h must be an object"),
        ("i", 5, "i must be a list"),
        ("j", 5, "j may only be null"),
        ("k", 5, "k must be a list"),
        ("z", 5, "z is not a field of this object"),
    ],
)
def test_the_sentences(name, value, message):
    with pytest.raises(ValidationError) as refused:
        Everything.model_validate({name: value})
    assert about(name, refused.value.errors()[0]) == message


def test_types_of_pydantic_without_a_sentence_say_little():
    for kind in FOREIGN - SENTENCES.keys():
        error = {"type": kind, "msg": "Input should be a valid thing", "loc": (), "input": 1}
        assert about("a", error) == "a is not valid here"
    assert SENTENCES.keys() <= FOREIGN
