"""JSON schemas as they come, made what llguidance reads: draft 2020-12, without annotations.

Which keywords can be enforced is left to llguidance, which refuses the others. Refused here is
what it would read differently from a validator, and what is no schema at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from saccade_server.grammars.errors import INVALID, TOO_LARGE, UNSUPPORTED, GrammarError, Path
from saccade_server.grammars.patterns import rewritten
from saccade_server.grammars.schema_choices import telling
from saccade_server.grammars.schema_values import (
    BOUNDS,
    COUNTS,
    bound,
    count,
    factor,
    merges,
    narrowed,
    text,
    values,
)

Schema: TypeAlias = Mapping[str, Any] | bool
Node: TypeAlias = dict[str, Any] | bool

MOST_PARTS: Final = 10_000
DEEPEST: Final = 50
"""Schemas within schemas; a definition begins anew."""

# The keywords of draft 2020-12 that are more than annotations, whoever enforces them.
IN_MAPS: Final = frozenset({"dependentSchemas", "patternProperties", "properties"})
IN_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
ALONE: Final = frozenset(
    {
        "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
        "unevaluatedItems", "unevaluatedProperties",
    }
)  # fmt: skip
PLAIN: Final = frozenset(
    {
        "const", "dependentRequired", "enum", "format", "maxContains", "minContains", "multipleOf",
        "pattern", "required", "type", "uniqueItems", *COUNTS, *BOUNDS,
    }
)  # fmt: skip

OTHERS: Final = frozenset(
    {"$dynamicRef", "$recursiveRef", "dependencies", "disallow", "divisibleBy", "extends"}
)
"""References that depend on the way to them, and keywords of other drafts, which 2020-12 does not
know: dropped, they would not be enforced."""

FORMATS: Final = frozenset(
    {
        "date", "date-time", "duration", "email", "hostname", "idn-email", "idn-hostname", "ipv4",
        "ipv6", "iri", "iri-reference", "json-pointer", "regex", "relative-json-pointer", "time",
        "uri", "uri-reference", "uri-template", "uuid",
    }
)  # fmt: skip
"""Formats of the specification; any other is an annotation to it."""


class SchemaReader:
    """One document, and the definitions that references in it lead to.

    ``closed``: objects that list properties have no others, unless they say so.
    """

    def __init__(self, document: Schema, *, closed: bool = False) -> None:
        self._document = document
        self._closed = closed
        self._merges = merges(document)
        self._parts = 0
        self._names: dict[tuple[Path, str | None], str] = {}
        self._inlined: set[Path] = set()

    def whole(self, path: Path = ()) -> dict[str, Any]:
        """The part of the document at ``path``, as a document of its own.

        Raises GrammarError, its path from the top of the document.
        """
        top = self._read(self._at(path), path, 0)
        if top is False:
            raise GrammarError("No answer is valid against the schema: it is false.", path)
        return self._defined({} if top is True else top)

    def _defined(self, node: dict[str, Any]) -> dict[str, Any]:
        """The same with the definitions that it leads to."""
        definitions: dict[str, Node] = {}
        while len(definitions) < len(self._names):
            target, required = list(self._names)[len(definitions)]
            read = self._read(self._at(target), target, 0)
            name = self._names[target, required]
            definitions[name] = read if required is None else _requiring(read, required)
        return {**node, "$defs": definitions} if definitions else node

    def several(self, paths: Sequence[Path]) -> dict[str, Any]:
        """A document that holds only where all these parts do."""
        if len(paths) == 1:
            return self.whole(paths[0])
        nodes = [self._read(self._at(path), path, 0) for path in paths]
        return self._defined({"type": "array", "prefixItems": nodes, "minItems": len(nodes)})

    def target(self, path: Path) -> Path | None:
        """Where the reference of the part at ``path`` leads to; None: it has none."""
        part = self._at(path)
        if not isinstance(part, Mapping) or "$ref" not in part:
            return None
        return self._target(part["$ref"], (*path, "$ref"))

    def _at(self, path: Path) -> Any:
        part: Any = self._document
        for step in path:
            part = part[step]
        return part

    def _read(self, schema: Any, path: Path, depth: int) -> Node:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise GrammarError(f"The schema has more than {MOST_PARTS} parts.", path, TOO_LARGE)
        if depth > DEEPEST:
            message = f"The schema is nested more than {DEEPEST} levels deep."
            raise GrammarError(message, path, TOO_LARGE)
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise GrammarError("A schema must be an object, true or false.", path)
        if path and "$id" in schema:
            message = "$id is supported at the top of a schema only."
            raise GrammarError(message, (*path, "$id"), UNSUPPORTED)
        node: dict[str, Any] = {}
        for key in schema:
            self._keyword(node, schema, key, (*path, key), depth)
        _check_names(node, path)
        narrowed(node, self._merges)
        if self._closed and "properties" in node:
            node.setdefault("additionalProperties", False)
        return node

    def _keyword(
        self, node: dict[str, Any], schema: Mapping[str, Any], key: str, path: Path, depth: int
    ) -> None:
        value = schema[key]
        if key in OTHERS:
            raise GrammarError(f"The keyword {key} is not supported.", path, UNSUPPORTED)
        if key == "items" and isinstance(value, list):  # as drafts before 2020-12 write tuples
            node["prefixItems"] = self._list(value, path, depth)
            if "additionalItems" in schema:
                rest = (*path[:-1], "additionalItems")
                node["items"] = self._read(schema["additionalItems"], rest, depth + 1)
        elif key in ALONE:
            node[key] = self._read(value, path, depth + 1)
        elif key in IN_MAPS:
            node[key] = self._map(value, path, depth)
        elif key == "oneOf":
            found = self._one_of(value, schema.get("discriminator"), path, depth)
            if found.keys() & node.keys() or (found.keys() & schema.keys()) - {key}:
                found = {"allOf": [*node.pop("allOf", []), found]}
            node.update(found)
        elif key in IN_LISTS:
            node[key] = self._list(value, path, depth)
        elif key == "$ref":
            node.update(self._reference(self._target(value, path)))
        elif key in PLAIN and (key, value) != ("uniqueItems", False):
            with _below(path):
                node.update(_plain(key, value))

    def _map(self, given: Any, path: Path, depth: int) -> dict[str, Node]:
        if not isinstance(given, Mapping):
            raise GrammarError(f"{path[-1]} must be an object of schemas.", path)
        read: dict[str, Node] = {}
        for name, schema in given.items():
            with _below((*path, name)):
                text(name)
                key = rewritten(name) if path[-1] == "patternProperties" else name
            read[key] = self._read(schema, (*path, name), depth + 1)
        return read

    def _list(self, given: Any, path: Path, depth: int) -> list[Node]:
        if not isinstance(given, Sequence) or isinstance(given, str) or not given:
            raise GrammarError(f"{path[-1]} must be a list of at least one schema.", path)
        return [self._read(item, (*path, index), depth + 1) for index, item in enumerate(given)]

    def _one_of(self, given: Any, discriminator: Any, path: Path, depth: int) -> dict[str, Any]:
        """Alternatives of which one may hold, as those that cannot hold together where that shows.

        What tells them apart is required in all of them: without it two could hold.
        """
        nodes = self._list(given, path, depth)
        places = [self._looked_up(item, (*path, index)) for index, item in enumerate(given)]
        named = discriminator.get("propertyName") if isinstance(discriminator, Mapping) else None
        name = telling([self._at(place) for place in places], named)
        for index, place in enumerate(places):
            here = (*path, index)
            if name is not None and place != here:
                nodes[index] = self._reference(place, name)
            elif name is not None:
                nodes[index] = _requiring(nodes[index], name)
            elif place != here and place not in self._inlined:  # llguidance looks at no definition
                self._inlined.add(place)
                nodes[index] = self._read(self._at(place), place, depth + 1)
                self._inlined.remove(place)
        return {"oneOf" if name is None else "anyOf": nodes}

    def _looked_up(self, schema: Any, path: Path) -> Path:
        """Where a schema is that may be no more than a reference to it."""
        seen = {path}
        while isinstance(schema, Mapping) and set(schema) - {"title", "description"} == {"$ref"}:
            path = self._target(schema["$ref"], (*path, "$ref"))
            if path in seen:
                break
            seen.add(path)
            schema = self._at(path)
        return path

    def _reference(self, target: Path, required: str | None = None) -> dict[str, Any]:
        """A reference to the part at ``target``, with one more property required."""
        name = self._names.setdefault((target, required), f"d{len(self._names)}")
        return {"$ref": f"#/$defs/{name}"}

    def _target(self, reference: Any, path: Path) -> Path:
        """Where a reference leads to."""
        if not isinstance(reference, str) or not (reference == "#" or reference[:2] == "#/"):
            raise GrammarError(
                "References must lead to a part of the schema itself, as #/$defs/NAME does.",
                path,
                UNSUPPORTED if isinstance(reference, str) else INVALID,
            )
        part: Any = self._document
        target: list[str | int] = []
        for piece in unquote(reference[2:]).split("/") if reference != "#" else []:
            step: str | int = piece.replace("~1", "/").replace("~0", "~")
            if isinstance(part, list) and piece.isdecimal():
                step = int(piece)
            try:
                part = part[step]
            except (KeyError, IndexError, TypeError):
                raise GrammarError("The reference leads to nothing in the schema.", path) from None
            target.append(step)
        return tuple(target)


def _requiring(node: Node, name: str) -> Node:
    if isinstance(node, bool):
        return node
    return {**node, "required": list(dict.fromkeys([*node.get("required", []), name]))}


@contextmanager
def _below(path: Path) -> Iterator[None]:
    try:
        yield
    except GrammarError as error:
        raise error.below(*path) from None


def _plain(key: str, value: Any) -> dict[str, Any]:
    """What a keyword without schemas in it becomes: itself, nothing, or a more exact value."""
    if key in COUNTS:
        return {key: count(value, key)}
    if key in BOUNDS:
        return {key: bound(value, key)}
    if key == "multipleOf":
        return {key: factor(value)}
    if key in ("enum", "const"):
        values(value, key)
    if key == "pattern":
        if not isinstance(value, str):
            raise GrammarError("pattern must be a string.")
        return {key: rewritten(text(value))}
    if key == "format":
        return {key: value} if value in FORMATS else {}
    if key == "required":
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise GrammarError("required must be a list of strings.")
        return {key: list(dict.fromkeys(map(text, value)))}
    return {key: value}


def _check_names(node: dict[str, Any], path: Path) -> None:
    """Names that an answer repeats count once to a validator, and twice to a grammar."""
    if node.get("minProperties", 0) > len(node.get("required", [])) + 1:
        raise GrammarError(
            "minProperties may be at most one more than there are required properties: which "
            "others have come already is not remembered.",
            (*path, "minProperties"),
            UNSUPPORTED,
        )
