"""Schemas as they may come: what random logits write under them is valid, if they are read."""

import json
import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from saccade_server.grammars.errors import GrammarError
from saccade_server.grammars.json_schema import of_schema
from saccade_testing.drawn_texts import accepts, byte_writer, demo_writer

NAMES = st.sampled_from(["a", "b", "a b", "\u00e9", '"', "u0061", "\n", ""])
NUMBERS = st.one_of(st.integers(-1000, 1000), st.decimals(-99, 99, places=2).map(float))
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-50, 50), st.text('ab\u00e9\n"', max_size=3)
)
PATTERNS = st.sampled_from(["^a", "b$", "^[a-c]*$", "a|b", r"^\d+$", "^.{1,3}$", r"\\", r"\S"])
BOUNDS = st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
NUMERIC = st.builds(
    lambda kind, bounds, factor: {"type": kind, **bounds, **factor},
    st.sampled_from(["integer", "number"]),
    st.dictionaries(BOUNDS, NUMBERS, max_size=2),
    st.one_of(
        st.just({}), st.fixed_dictionaries({"multipleOf": st.sampled_from([2, 3, 0.5, 0.1])})
    ),
)
TEXTS = st.fixed_dictionaries(
    {"type": st.just("string")},
    optional={"minLength": st.integers(0, 4), "maxLength": st.integers(0, 6), "pattern": PATTERNS},
)
LEAVES = st.one_of(
    st.booleans(), NUMERIC, TEXTS, PLAIN.map(lambda value: {"const": value}),
    st.lists(PLAIN, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.sampled_from([{"type": "null"}, {"type": ["boolean", "string"]}, {"type": "array"}]),
)  # fmt: skip


def larger(inner):
    objects = st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=3)},
        optional={
            "required": st.lists(NAMES, max_size=2),
            "additionalProperties": inner,
            "minProperties": st.integers(0, 2),
        },
    )
    arrays = st.fixed_dictionaries(
        {"type": st.just("array")},
        optional={
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(0, 4),
        },
    )
    several = st.builds(
        lambda name, parts: {name: parts},
        st.sampled_from(["anyOf", "allOf", "oneOf"]),
        st.lists(inner, min_size=1, max_size=3),
    )
    return st.one_of(objects, arrays, several)


LONG_NUMBERS = re.compile(rb"[0-9.]{20}|[eE][+-]?[0-9]")
SCHEMAS = st.recursive(LEAVES, larger, max_leaves=6)


def read(schema):
    try:
        return of_schema(schema)
    except GrammarError as error:
        part = schema
        for step in error.path[:-1]:  # the last may be a keyword of another part that is missing
            part = part[step]
        return None


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, st.integers(0, 10**6))
def test_what_is_written_is_valid(schema, seed):
    source = read(schema)
    if source is None:
        return
    validator = Draft202012Validator(json.loads(json.dumps(schema), parse_float=Decimal))
    for writer in (byte_writer(), demo_writer()):
        text = writer.text(source, seed)
        if text is None:  # it has not come upon what a pattern wants at the end
            continue
        if not LONG_NUMBERS.search(text):  # decimals of Python have 28 digits to divide with
            validator.validate(json.loads(text, parse_float=Decimal))


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, st.recursive(PLAIN, lambda v: st.lists(v, max_size=3), max_leaves=4))
def test_what_is_not_valid_is_not_accepted(schema, value):
    source = read(schema)
    if source is None:
        return
    text = json.dumps(value, ensure_ascii=False)
    if accepts(byte_writer(), source, text):
        Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2]", '"x"', "1.5", "true", "null"])
def test_anything_is_anything(text):
    assert accepts(byte_writer(), of_schema(True), text)
    assert accepts(byte_writer(), of_schema({}), text)
