"""What schemas become, what is refused and where, and that what is written is valid."""

import json
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from saccade_server.grammars.errors import INVALID, TOO_LARGE, UNSUPPORTED, GrammarError
from saccade_server.grammars.json_schema import Layout, of_object, of_schema
from saccade_testing.drawn_texts import accepts, byte_writer, demo_writer


def obj(**schema):
    return {"type": "object", **schema}


def closed(*required, **properties):
    return obj(properties=properties, required=list(required), additionalProperties=False)


INTEGER, STRING, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}


def nested(depth):
    schema = INTEGER
    for _ in range(depth):
        schema = closed("a", a=schema)
    return schema


# name: schema, code, path, words of the sentence
REFUSED = {
    "a keyword deep down": (
        closed(a=obj(properties={"b": {"not": NULL}})),
        UNSUPPORTED, ("properties", "a", "properties", "b", "not"), "keyword not",
    ),
    "a keyword behind a reference": (
        {"$defs": {"A": closed(q={"uniqueItems": True})}, "items": {"$ref": "#/$defs/A"}},
        UNSUPPORTED, ("$defs", "A", "properties", "q", "uniqueItems"), "keyword uniqueItems",
    ),
    "one of two thousand": (
        obj(properties={**{f"p{i}": INTEGER for i in range(2000)}, "p7": {"contains": NULL}},
            required=[f"p{i}" for i in range(2000)]),
        UNSUPPORTED, ("properties", "p7", "contains"), "keyword contains",
    ),
    "an unclosed group": (
        closed(a={"type": "string", "pattern": "(a"}),
        INVALID, ("properties", "a", "pattern"), "unclosed group",
    ),
    "look-ahead": ({"pattern": "a(?=b)"}, UNSUPPORTED, ("pattern",), "look-around"),
    "a class in a class": ({"pattern": "[[a]b]"}, UNSUPPORTED, ("pattern",), "escaped"),
    "an operator in a class": ({"pattern": "[a&&b]"}, UNSUPPORTED, ("pattern",), "escaped"),
    "a long pattern": ({"pattern": "a" * 5000}, TOO_LARGE, ("pattern",), "longer than"),
    "bounds that cross": (
        closed("a", a={"type": "integer", "minimum": 3, "maximum": 2}),
        INVALID, ("properties", "a", "minimum"), r"minimum \(3\) is greater than maximum \(2\)",
    ),
    "types that exclude each other": (
        {"allOf": [STRING, INTEGER]}, INVALID, (), "incompatible types",
    ),
    "false": (False, INVALID, (), "false"),
    "a remote reference": (
        {"items": {"$ref": "http://x/y"}}, UNSUPPORTED, ("items", "$ref"), "part of the schema",
    ),
    "a reference to nothing": ({"$ref": "#/$defs/a"}, INVALID, ("$ref",), "leads to nothing"),
    "a name that repeats": (
        obj(minProperties=2, additionalProperties=INTEGER),
        UNSUPPORTED, ("minProperties",), "at most one more",
    ),
    "a bound that doubles do not know": (
        {"type": "integer", "minimum": 2**53 + 1}, UNSUPPORTED, ("minimum",), "2.53",
    ),
    "a bound near zero": (
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1e-7},
        UNSUPPORTED, ("maximum",), "away from it",
    ),
    "a bound with all digits": (
        {"exclusiveMaximum": 0.30000000000000004}, UNSUPPORTED, ("exclusiveMaximum",), "digits",
    ),
    "a constant that doubles do not know": ({"const": 2**53 + 1}, UNSUPPORTED, ("const",), "2.53"),
    "one of an enumeration": ({"enum": ["a", 1e30]}, UNSUPPORTED, ("enum", 1), "2.53"),
    "a large factor": ({"multipleOf": 99991}, UNSUPPORTED, ("multipleOf",), "10000"),
    "a factor of nothing": ({"multipleOf": 0}, INVALID, ("multipleOf",), "greater than 0"),
    "half a character": ({"const": "\ud800"}, INVALID, ("const",), "surrogate"),
    "half a character in a name": (closed(**{"\ud800": NULL}), INVALID,
                                   ("properties", "\ud800"), "surrogate"),
    "a bound as draft 4 writes it": (
        {"exclusiveMinimum": True, "minimum": 1}, INVALID, ("exclusiveMinimum",), "number",
    ),
    "a keyword of older drafts": ({"dependencies": {"a": ["b"]}}, UNSUPPORTED, ("dependencies",),
                                  "not supported"),
    "a count below nothing": ({"minItems": -1}, INVALID, ("minItems",), "whole number"),
    "a long text": ({"minLength": 10_001}, TOO_LARGE, ("minLength",), "10000"),
    "no schema": ({"items": 3}, INVALID, ("items",), "object, true or false"),
    "no list": ({"anyOf": {}}, INVALID, ("anyOf",), "list"),
    "no type": (closed(a={"type": "nothing"}), INVALID, ("properties", "a", "type"), "nothing"),
    "an empty enumeration": ({"enum": []}, INVALID, ("enum",), "at least one"),
    "an unknown property required": (
        closed("b", a=NULL), INVALID, ("required",), "required property 'b'",
    ),
    "alternatives that overlap": ({"oneOf": [INTEGER, {"type": "number"}]}, UNSUPPORTED,
                                  ("oneOf",), "oneOf"),
    "a discriminator that tells nothing": (
        {"oneOf": [obj(properties={"k": STRING}), obj(properties={"k": STRING})],
         "discriminator": {"propertyName": "k"}},
        UNSUPPORTED, ("oneOf",), "oneOf",
    ),
    "itself required": (closed("a", a={"$ref": "#"}), INVALID, (), "No answer ends"),
    "itself as an item": (
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1}, INVALID, (), "No answer ends",
    ),
    "each other": (
        {"$defs": {"a": closed("b", b={"$ref": "#/$defs/b"}),
                   "b": {"type": "array", "prefixItems": [{"$ref": "#/$defs/a"}], "minItems": 1}},
         "$ref": "#/$defs/a"},
        INVALID, (), "No answer ends",
    ),
    "itself, with its type elsewhere": (
        {"allOf": [{"type": "object"}], "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        INVALID, (), "No answer ends",
    ),
    "levels": (nested(60), TOO_LARGE, ("properties", "a") * 51, "levels"),
    "parts": ({"anyOf": [NULL] * 10_001}, TOO_LARGE, ("anyOf", 9999), "parts"),
    "values": ({"enum": list(range(50_001))}, TOO_LARGE, ("enum",), "values"),
    "ways to go on": (
        obj(properties={f"p{i}": INTEGER for i in range(300)}), TOO_LARGE, (), "too many ways",
    ),
    "products of alternatives": (
        {"allOf": [{"anyOf": [closed(**{f"a{i}{k}": NULL}) for k in range(8)]} for i in range(8)]},
        TOO_LARGE, (), "too large",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_with_its_place(name):
    schema, code, path, words = REFUSED[name]
    with pytest.raises(GrammarError, match=words) as caught:
        of_schema(schema)
    assert (caught.value.code, caught.value.path) == (code, path)


# what is read, and holds: schemas whose readings are easily wrong
READ = {
    "names that escapes could repeat": obj(
        properties={"a": INTEGER, '"': NULL, "\u00e9": INTEGER, "\n": NULL},
        additionalProperties=STRING, required=['"']),
    "patterns of names": obj(
        patternProperties={"^\\u0001": INTEGER, "^x": {"type": "boolean"}},
        additionalProperties=STRING),
    "one more than is required": obj(required=["a"], minProperties=2, additionalProperties=NULL),
    "anchors on both sides": {"pattern": "^a|b$", "type": "string", "maxLength": 9},
    "an escaped anchor": {"pattern": "a\\$", "type": "string", "maxLength": 9},
    "classes of ECMA": {"pattern": r"^[\w.-]+@[\d-]+\.\s$", "type": "string"},
    "a length and a pattern": {"type": "string", "pattern": "^[^a]*$", "minLength": 2,
                               "maxLength": 3},
    "characters beyond 16 bits": {"type": "string", "minLength": 2, "maxLength": 2},
    "whole numbers between fractions": {"type": "integer", "minimum": 0.5, "maximum": 2.5},
    "safe integers": {"type": "integer", "minimum": -(2**53 - 1), "maximum": 2**53 - 1},
    "numbers between": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.25},
    "numbers between exclusive bounds": {
        "anyOf": [{"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + 0.5}
                  for low in (0, 1, -1, 99)]},
    "numbers below": {"allOf": [{"exclusiveMaximum": 0, "type": "number"}, {"minimum": -0.5}]},
    "whole numbers below": {"type": "integer", "exclusiveMaximum": 0, "minimum": -2},
    "cents": {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 99.99},
    "two factors": {"allOf": [{"multipleOf": 0.4}, {"multipleOf": 0.6}], "type": "number",
                    "minimum": -1000, "maximum": 1000},
    "an enumeration with bounds": {"enum": [1, 5, 9, "a"], "minimum": 4},
    "an enumeration of objects": {"enum": [{"a": 1}, {"a": "x"}],
                                  "properties": {"a": STRING}},
    "constants": {"enum": [1.5, 0.1, -0.0, None, True, "\x7f\u2028/", [1], {"a": {}}]},
    "a reference with company": {"$defs": {"x": {"type": "string", "minLength": 3}},
                                 "$ref": "#/$defs/x", "maxLength": 4},
    "a reference with escapes": {"$defs": {"a/b~c %": {"const": 7}},
                                 "$ref": "#/$defs/a~1b~0c%20%25"},
    "a reference to a property": closed("b", a={"type": "integer", "minimum": 5},
                                        b={"$ref": "#/properties/a"}),
    "a tree": {"$defs": {"n": closed("v", "k", v=INTEGER,
                                     k={"type": "array", "items": {"$ref": "#/$defs/n"}})},
               "$ref": "#/$defs/n"},
    "either is required": {"type": "object", "properties": {"a": INTEGER},
                           "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "bases": {"allOf": [obj(properties={"a": INTEGER}, additionalProperties=STRING),
                        obj(properties={"b": STRING})]},
    "alternatives told by constants": {"oneOf": [closed("k", k={"const": "a"}),
                                                 closed("k", k={"const": "b"}, v=INTEGER)]},
    "formats": closed(
        "a", "b", "c", a={"type": "string", "format": "date"},
        b={"type": "string", "format": "uuid"}, c={"type": "string", "format": "password"}),
    "unknown words": {"type": "string", "minLenght": 3, "x-guidance": {"lenient": True}},
    "no unique items": {"type": "array", "items": INTEGER, "uniqueItems": False, "maxItems": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("writer", [byte_writer, demo_writer])
def test_what_is_read_holds(name, writer):
    schema, source = READ[name], of_schema(READ[name])
    validator = Draft202012Validator(json.loads(json.dumps(schema), parse_float=Decimal))
    for seed in range(10):
        text = writer().text(source, seed)
        assert text is not None
        validator.validate(json.loads(text, parse_float=Decimal))


def test_tuples_as_older_drafts_write_them():
    source = of_schema({"items": [STRING, INTEGER], "additionalItems": False, "type": "array"})
    assert has(source, '["a",1]', '["a"]', "[]") == [True] * 3
    assert not any(has(source, '["a",1,2]', "[1]"))
    open_ended = of_schema({"items": [STRING], "additionalItems": NULL, "type": "array"})
    assert has(open_ended, '["a",null,null]', '["a",1]') == [True, False]


def test_a_dot_is_none_of_four_line_ends():
    source = of_schema({"type": "string", "pattern": "^.$"})
    assert has(source, '"a"', '"\u00e9"') == [True, True]
    assert not any(has(source, r'"\n"', r'"\r"', '"\u2028"', '"\u2029"', '""', '"ab"'))


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (r"^\d$", "07", "a\u0664\u0e53"),
        (r"^[\d]$", "07", "a\u0664"),
        (r"^\w$", "aZ0_", "-\u00e9\u0664"),
        (r"^[\w-]$", "aZ0_-", "\u00e9"),
        (r"^\D$", "a-\u00e9", "0\u0664"),
        (r"^\W$", "- ", "a0_\u00e9"),
        (r"^[^\d]$", "a\u00e9", "0\u0664"),
        (r"^[^\w]$", "- ", "a\u00e9"),
        (r"^[^\D]$", "07", "a\u0664"),
        (r"^[^\S]$", " \u2003", "a\u0085\ufeff"),
        (r"^[\D]$", "a\u00e9", "0\u0664"),
        (r"^\\d$", (), "0"),
    ],
)
def test_what_a_class_has_in_it_to_some_readers_only_does_not_match(pattern, inside, outside):
    """JavaScript's digits are ten, Python's are those of all scripts; an answer is both's."""
    source = of_schema({"type": "string", "pattern": pattern})
    assert all(has(source, *(json.dumps(text, ensure_ascii=False) for text in inside)))
    assert not any(has(source, *(json.dumps(text, ensure_ascii=False) for text in outside)))


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = Field(9, ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    friend: "Pet | None" = None


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Home(BaseModel):
    """Of what pydantic writes: unions, enumerations, maps, optional parts, recursion."""

    owner: str = Field(description="who lives there", max_length=20)
    colour: Colour | None = None
    pets: list[Pet] = Field(max_length=3)
    ages: dict[str, int] = {}
    place: tuple[float, float] | None = None


Dog.model_rebuild()


def test_what_pydantic_writes_it_reads_again():
    source = of_schema(Home.model_json_schema())
    for writer in (byte_writer(), demo_writer()):
        for seed in range(20):
            text = writer.text(source, seed)
            assert text is not None
            Home.model_validate_json(text)
    assert has(source, '{"owner": "a", "pets": [{"kind": "cat"}]}')[0]
    assert not any(has(source, '{"owner":"a","pets":[{"lives":1}]}'))  # the kind is required


def has(source, *texts):
    return [accepts(byte_writer(), source, text) for text in texts]


def test_the_layout():
    schema = closed("a", a={"type": "array", "items": INTEGER})
    texts = ('{"a":[1,2]}', '{"a": [1, 2]}', '{ "a" : [ 1 , 2 ] }', '{"a":  [1]}', '{"a":\n[1]}')
    assert has(of_schema(schema), *texts) == [True, True, True, False, False]
    compact = of_schema(schema, Layout(whitespace=None))
    assert has(compact, *texts) == [True, False, False, False, False]
    lines = of_schema(schema, Layout(whitespace=r"\n *"))
    assert has(lines, '{"a":[1]}', '{\n "a":\n  [1]\n}', '{"a": [1]}') == [True, True, False]
    assert not any(has(of_schema(schema), ' {"a":[1]}', '{"a":[1]} '))


@pytest.mark.parametrize("pattern", [r"\s*", r"[\s]{0,3}", r"[\n ]?", "( |\n\t?){0,9}", r"\s?\r?"])
def test_white_space_is_what_json_takes_for_it(pattern):
    source = of_schema({"type": "array"}, Layout(whitespace=pattern))
    assert all(has(source, "[]", "[ ]", "[\n]"))
    assert not any(has(source, "[\u00a0]", "[\x0b]", "[\u2003]", "[\x85]", "[x]"))


@pytest.mark.parametrize(
    "pattern", ["[a-z]", ".*", r"\S", "[^a]", " |x", "\u00a0", r"\v", r"(?s:.)*"]
)
def test_a_pattern_of_white_space_that_is_more(pattern):
    """An answer would be no JSON, and said to be complete."""
    with pytest.raises(GrammarError, match="matches other texts too"):
        of_schema({"type": "array"}, Layout(whitespace=pattern))


@pytest.mark.parametrize("pattern", ["(", "a(?=b)", "(a{1000}){1000}(?!x)"])
def test_a_pattern_of_white_space_that_is_none(pattern):
    with pytest.raises(GrammarError, match="white space"):
        of_schema({}, Layout(whitespace=pattern))


def test_closed_objects():
    schema = obj(properties={"a": NULL, "b": obj(), "c": obj(properties={"d": NULL})})
    source = of_schema(schema, Layout(closed=True))
    assert has(source, '{"a":null}', '{"b":{"x":1}}', '{"c":{"d":null}}') == [True] * 3
    assert not any(has(source, '{"x":1}', '{"c":{"x":1}}'))
    assert has(of_schema(schema), '{"x":1}')[0]


def test_any_object():
    assert has(of_object(), "{}", '{"a": [1, null, {"b": "c"}]}') == [True, True]
    assert not any(has(of_object(), "[]", "1", "", '{"a":}'))
