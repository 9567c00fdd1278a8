"""Methods of other packages: an entry point each, in the group ``saccade.interventions``.

A plug-in brings a method, written with the edits and rules that there are. Rules are carried out by
handlers built into the engine, so a package with a rule of its own is refused where it is found:
before the model is loaded, rather than at the first request.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import TypeGuard

from saccade_interventions.base import Intervention
from saccade_interventions.compiled import check_own
from saccade_interventions.foreign import ForeignError
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.probes import probes
from saccade_interventions.rules import KINDS, Rule

GROUP = "saccade.interventions"

STAND_IN = ModelFacts(
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=16,
    hidden_size=64,
    sink_dims=(0,),
    fingerprint="sha256:" + "0" * 64,
)
"""A model that a plug-in's probe is compiled for, whatever model will be served."""


class PluginError(ValueError):
    """A package offers what is no method, or one that cannot run here; says which, and why."""


def plugins() -> Iterator[type[Intervention]]:
    """The methods that installed packages offer.

    Raises:
        PluginError: one of them cannot be offered.
    """
    for point in entry_points(group=GROUP):
        yield _loaded(point)


def is_method(kind: object) -> TypeGuard[type[Intervention]]:
    """True for a subclass of Intervention that is complete and has a name of its own."""
    return (
        isinstance(kind, type)
        and issubclass(kind, Intervention)
        and not inspect.isabstract(kind)
        and "method" in kind.model_fields
    )


def _loaded(point: EntryPoint) -> type[Intervention]:
    try:
        kind = point.load()
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise PluginError(f"{_place(point)} cannot be loaded: {what}") from error
    if not is_method(kind):
        raise PluginError(f"{_place(point)} is not an Intervention")
    try:
        _check_rules(kind)
        _check_probe(kind)
    except ForeignError as error:
        raise PluginError(f"{kind.method_id()}, {_place(point)}, {error}") from None
    return kind


def _place(point: EntryPoint) -> str:
    """An entry point in a message, with the package that has it."""
    package = getattr(point, "dist", None)
    of = f" of the package {package.name}" if package is not None else ""
    return f"entry point {point.name!r} of {GROUP}{of}"


def _check_rules(method: type[Intervention]) -> None:
    """Refuse a method whose package defines a kind of rule, used or not.

    Raises:
        ForeignError: it does.
    """
    package = method.__module__.partition(".")[0]
    for kind in _kinds_below(Rule):
        if kind not in KINDS and kind.__module__.partition(".")[0] == package:
            raise ForeignError("a rule", kind)


def _kinds_below(base: type[Rule]) -> Iterator[type[Rule]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds_below(kind)


def _check_probe(method: type[Intervention]) -> None:
    """Refuse a method whose probe has a plan with what the engine does not know.

    Nothing else is asked of it: it may not fit the stand-in for a model, and what it does to the
    one that is served, the self-test sees.

    Raises:
        ForeignError: it has.
    """
    try:
        for item, context in probes(method, STAND_IN):
            check_own(item.compile(context))
    except ForeignError:
        raise
    except Exception:  # it is the stand-in that it was not made for
        return
