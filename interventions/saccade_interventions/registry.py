"""Which methods exist, and what the server tells about them.

Methods are the modules of :mod:`saccade_interventions.methods` and whatever installed packages
offer (see plugins.py). A request never brings code.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from types import MappingProxyType
from typing import Any

from saccade_interventions import methods as built_in
from saccade_interventions.base import Intervention
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.parsing import parse_entries
from saccade_interventions.plugins import is_method, plugins
from saccade_interventions.suggest import unknown


class Registry:
    """The methods a server offers, by name."""

    def __init__(self, methods: Iterable[type[Intervention]]) -> None:
        found: dict[str, type[Intervention]] = {}
        for method in methods:
            other = found.setdefault(method.method_id(), method)
            if other is not method:
                names = " and ".join(f"{m.__module__}.{m.__qualname__}" for m in (other, method))
                raise ValueError(f"two methods are called {method.method_id()!r}: {names}")
        self.methods = MappingProxyType(dict(sorted(found.items())))

    @classmethod
    def discover(cls) -> Registry:
        """Everything installed.

        Raises:
            PluginError: an installed package offers what is no method, or cannot run here.
            ValueError: two methods have one name.
        """
        return cls([*_built_in(), *plugins()])

    def parse(self, value: object) -> tuple[Intervention, ...]:
        """The methods and parameters that the ``interventions`` field of a request asks for.

        Raises:
            InterventionError: the first thing wrong with it.
        """
        return parse_entries(value, self.methods)

    def describe(self, method: str) -> dict[str, Any]:
        """All about one method: facts, JSON Schema, default rows, an example entry, and the
        fields with which it changes nothing.

        Raises:
            InterventionError: there is no such method.
        """
        if method not in self.methods:
            raise InterventionError(Code.UNKNOWN_METHOD, unknown("method", method, self.methods))
        kind = self.methods[method]
        schema = kind.json_schema()
        return {
            **_facts(kind),
            "rows": schema["properties"].get("rows", {}).get("default"),
            "schema": schema,
            "example": kind.example,
            "neutral": kind.neutral,
        }

    def listing(self, model: ModelFacts) -> list[dict[str, Any]]:
        """One line a method, saying whether ``model`` supports it, and if not, why."""
        reasons = {kind: kind.unsupported(model) for kind in self.methods.values()}
        return [
            {**_facts(kind), "supported": reason is None, "reason": reason}
            for kind, reason in reasons.items()
        ]


def _facts(kind: type[Intervention]) -> dict[str, Any]:
    return {
        "id": kind.method_id(),
        "version": kind.current_version,
        "title": kind.title,
        "summary": kind.summary,
        "paper": kind.paper,
        "level": kind.level,
        "needs_image": kind.needs_image,
        "needs_artifact": kind.needs_artifact,
    }


def _built_in() -> Iterator[type[Intervention]]:
    for info in pkgutil.iter_modules(built_in.__path__, f"{built_in.__name__}."):
        module = importlib.import_module(info.name)
        for kind in vars(module).values():
            if is_method(kind) and kind.__module__ == module.__name__:
                yield kind
