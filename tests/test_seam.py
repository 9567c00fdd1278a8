"""What carries rules out, or reports on them, knows none: no kind of rule and no method by name.

A rule says what is to be known of it in its own file, and its handler does it. Whoever needs to
know more of a rule adds a fact to :class:`saccade_interventions.rule_base.Rule`, or a hook to
:class:`saccade_server.engine.rules.base.RuleHandler`, and not a name here.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from saccade_interventions.registry import Registry
from saccade_interventions.rules import KINDS
from saccade_server.engine.rules import HANDLERS
from saccade_server.engine.rules.base import RuleHandler

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "interventions/saccade_interventions",
    "server/saccade_server/engine",
    "server/saccade_server/requests",
)
HOUSE = ("interventions/saccade_interventions", "server/saccade_server")
KNOWING = (
    "interventions/saccade_interventions/rules.py",
    "interventions/saccade_interventions/key_rules.py",
    "interventions/saccade_interventions/methods",
    "server/saccade_server/engine/rules",
)
SEAM = ("base.py", "handlers.py")
TRACES = ("server/saccade_server/engine/traces", "server/saccade_server/requests/traces")
"""What traces read has the names of what rules look at: sinks, recent keys, saliency."""

ALLOWED = {
    "interventions/saccade_interventions/parsing.py": {'"var"'},  # an example in a message
    "server/saccade_server/engine/load.py": {"sinks"},  # dimensions of the model, on the first run
    "server/saccade_server/requests/profiles.py": {'"pai"', '"var"'},  # an example of a profile
}
"""What is named all the same. Entries go; none is added, and one that nothing needs fails."""


def is_blind(path: Path) -> bool:
    """True if the file works by what any rule says of itself."""
    where = path.relative_to(ROOT).as_posix()
    return path.name in SEAM or not where.startswith(KNOWING)


@cache
def kinds() -> frozenset[str]:
    """Names of the kinds, of what they find and of their handlers."""
    return frozenset(kind.__name__ for kind in (*KINDS, *HANDLERS))


@cache
def methods() -> frozenset[str]:
    """Names of the classes of methods, as texts write them, and in quotes as requests do."""
    found = Registry.discover().methods
    return frozenset(f'"{name}"' for name in found) | {kind.__name__ for kind in found.values()}


@cache
def topics() -> frozenset[str]:
    """What handlers are about, by their files."""
    return frozenset(handler.__module__.rsplit(".", 1)[1] for handler in HANDLERS)


@cache
def fields() -> frozenset[str]:
    """Fields of rules whose names nothing else has."""
    own = {name for kind in KINDS for name in kind.__struct_fields__}
    every = (path for name in HOUSE for path in (ROOT / name).rglob("*.py"))
    return frozenset(own - {name for path in every if is_blind(path) for name in defined(path)})


def defined(path: Path) -> Iterator[str]:
    """Names that classes of a file give to what they have."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    yield part.target.id
                elif isinstance(part, ast.FunctionDef):
                    yield part.name


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def words(path: Path) -> set[str]:
    """Whole words of the file, comments and docstrings too."""
    return set(re.findall(r'"\w+"|\w+', path.read_text()))


def variables(path: Path) -> Iterator[str]:
    """What its code names: variables, modules and what they bring, attributes."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (name.name for name in node.names)
    yield from attributes(path)


def attributes(path: Path) -> Iterator[str]:
    """What its code asks objects for, and the arguments that it gives by name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg


def named(path: Path) -> set[str]:
    """Names of rules and methods that a file has."""
    found = words(path) & (kinds() | methods())
    if path.relative_to(ROOT).as_posix().startswith(TRACES):
        return found
    return found | topics() & set(variables(path)) | fields() & set(attributes(path))


SOURCES = tuple(path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py")))
NAMED = {path.relative_to(ROOT).as_posix(): named(path) for path in SOURCES if is_blind(path)}


def test_no_rule_and_no_method_is_named() -> None:
    """Else a fact in rule_base.py, or a hook of the handler, is missing."""
    new = {path: names - ALLOWED.get(path, set()) for path, names in NAMED.items()}
    assert not {path: names for path, names in new.items() if names}


def test_the_list_only_shrinks() -> None:
    done = {path: names - NAMED.get(path, set()) for path, names in ALLOWED.items()}
    assert not {path: names for path, names in done.items() if names}, "take it off the list"


def test_a_name_is_found_where_there_is_one() -> None:
    """The search itself: a file of a kind has its names, code of another has not."""
    rules = ROOT / "server/saccade_server/engine/rules"
    assert {"ContrastRule", "ContrastHandler"} <= named(rules / "contrast.py")
    assert {"unsure", "decimals", "ConfidenceRule"} <= named(rules / "confidence.py")
    assert '"vcd"' in named(ROOT / "interventions/saccade_interventions/methods/vcd.py")
    assert fields().isdisjoint({"threshold", "layers"})


if __name__ == "__main__":
    for path, names in NAMED.items():
        if names:
            print(f'    "{path}": {set(names)},')


def test_what_changes_logits_is_asked_in_padded_steps() -> None:
    """By a stage, or by the ordinary draw that CHOICE asks for: else it would do nothing."""
    for handler in HANDLERS:
        if handler.combine is not RuleHandler.combine and handler.stages is RuleHandler.stages:
            assert "Wants.CHOICE" in inspect.getsource(handler.wants), handler
