"""Schemas whose every answer would go on for ever: those that require themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from saccade_server.grammars.errors import GrammarError

_TYPES: Final = frozenset({"null", "boolean", "number", "integer", "string", "array", "object"})
_PLAIN: Final = _TYPES - {"array", "object"}


class _Endings:
    """Which parts of a read document have an answer that ends: the least such set.

    A part is asked about together with the types that what surrounds it leaves.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._definitions: Mapping[str, Any] = document.get("$defs", {})
        self._ending: set[tuple[int, frozenset[str]]] = set()
        self._asked: dict[tuple[int, frozenset[str]], Any] = {}

    def ends(self, document: Any) -> bool:
        first = self._ask(document, _TYPES)
        while True:
            before = len(self._ending), len(self._asked)
            for key, node in list(self._asked.items()):
                if key not in self._ending and self._has_end(node, key[1]):
                    self._ending.add(key)
            if first in self._ending:
                return True
            if before == (len(self._ending), len(self._asked)):
                return False

    def _ask(self, node: Any, types: frozenset[str]) -> tuple[int, frozenset[str]]:
        key = (id(node), types)
        self._asked.setdefault(key, node)
        return key

    def _known(self, node: Any, types: frozenset[str] = _TYPES) -> bool:
        if isinstance(node, bool):
            return node
        return self._ask(node, types) in self._ending

    def _has_end(self, node: Any, types: frozenset[str]) -> bool:
        if isinstance(node, bool):
            return node
        types &= self._types(node, 0)
        if "$ref" in node and not self._known(self._definition(node), types):
            return False
        if not all(self._known(part, types) for part in node.get("allOf", [])):
            return False
        for name in ("anyOf", "oneOf"):
            if name in node and not any([self._known(part, types) for part in node[name]]):
                return False
        if "const" in node or "enum" in node or types & _PLAIN:
            return True
        return ("array" in types and self._array_ends(node)) or (
            "object" in types and self._object_ends(node)
        )

    def _array_ends(self, node: Mapping[str, Any]) -> bool:
        first = node.get("prefixItems", [])
        least = node.get("minItems", 0)
        if not all([self._known(part) for part in first[:least]]):
            return False
        return least <= len(first) or self._known(node.get("items", True))

    def _object_ends(self, node: Mapping[str, Any]) -> bool:
        properties = node.get("properties", {})
        others = node.get("additionalProperties", True)
        if "patternProperties" in node:
            others = True  # which pattern a name has is llguidance's to know
        return all([self._known(properties.get(name, others)) for name in node.get("required", [])])

    def _definition(self, node: Mapping[str, Any]) -> Any:
        return self._definitions[node["$ref"].rsplit("/", 1)[1]]

    def _types(self, node: Any, depth: int) -> frozenset[str]:
        """Types that a part leaves, by itself and by all that holds with it."""
        if isinstance(node, bool) or depth > 8:
            return _TYPES
        own = node.get("type", _TYPES)
        types = frozenset([own] if isinstance(own, str) else own) & _TYPES
        if "number" in types:
            types |= {"integer"}
        for part in node.get("allOf", []):
            types &= self._types(part, depth + 1)
        if "$ref" in node:
            types &= self._types(self._definition(node), depth + 1)
        return types


def check_ends(document: Mapping[str, Any]) -> None:
    """Raise GrammarError for a read document that no finite answer satisfies."""
    if not _Endings(document).ends(document):
        raise GrammarError(
            "No answer ends: every one must contain another one that the schema requires."
        )
