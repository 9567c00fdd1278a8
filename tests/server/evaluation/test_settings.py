"""Settings from files and listings; what is wrong with a file is said with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from saccade_interventions.methods.head_steering import PUBLISHED
from saccade_interventions.registry import Registry
from saccade_server.evaluation.errors import EvaluationError
from saccade_server.evaluation.settings import Setting, listed_settings, read_settings

REGISTRY = Registry.discover()
METHODS = REGISTRY.methods
GRIDS = {name: method.grid for name, method in METHODS.items() if method.grid}
TOML = """
[[settings]]
name = "strong"
interventions = [{method = "var", move_fraction = 0.9}, {method = "pai"}]
grid = [[{method = "var", move_fraction = 0.2}], []]

[[settings]]
name = "plain again"
"""


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml, other = tmp_path / "s.toml", tmp_path / "s.json"
    toml.write_text(TOML)
    first, second = read_settings(toml)
    assert first == Setting(
        "strong",
        ({"method": "var", "move_fraction": 0.9}, {"method": "pai"}),
        (({"method": "var", "move_fraction": 0.2},), ()),
    )
    assert second.interventions == ()
    listed = [{"name": "plain again"}]
    other.write_text(json.dumps({"settings": listed}))
    assert read_settings(other) == [second]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings = 3", "no list called settings"),
        ("a =", "s.toml"),
        ("[[settings]]\nnam = 'x'", r"settings\[0\]: a setting is a table with a name"),
        ("[[settings]]\nname = 'x'\nmethod = 'var'", "unknown field 'method'"),
        ("[[settings]]\nname = 'x'\ninterventions = ['var']", r"settings\[0\].interventions"),
        ("[[settings]]\nname = 'x'\ngrid = [{method = 'var'}]", r"grid\[0\]"),
        ("[[settings]]\nname = 'x'\n[[settings]]\nname = 'x'", "'x' is there already"),
        ("[[settings]]\nname = 'none'", "'none' is there already"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_settings(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"nothing\.toml"):
        read_settings(tmp_path / "nothing.toml")


def test_the_question_fills_every_text() -> None:
    entry = {
        "method": "pasta",
        "highlight": ["{question}", "of"],
        "heads": {"1": [0]},
        "alpha": 0.1,
    }
    (filled,) = Setting("x", (entry,)).entries("Is {it}?")
    assert filled == {**entry, "highlight": ["Is {it}?", "of"]}
    assert entry["highlight"][0] == "{question}"


def test_a_listing_gives_defaults_and_reasons() -> None:
    methods = [
        {"id": "pai", "supported": True, "reason": None},
        {"id": "var", "supported": False, "reason": "no sinks"},
    ]
    found, missing = listed_settings(methods)
    assert [setting.interventions for setting in found] == [({"method": "pai"},)]
    assert found[0].grid == tuple(({"method": "pai", **fields},) for fields in GRIDS["pai"])
    assert missing == {"var": "no sinks"}


def test_a_method_of_a_server_that_is_not_installed_here() -> None:
    (setting,), _ = listed_settings([{"id": "theirs", "supported": True, "reason": None}])
    assert setting == Setting("theirs", ({"method": "theirs"},))


def test_methods_without_a_strength_have_no_grid() -> None:
    assert METHODS.keys() - GRIDS.keys() == {"function_vector", "head_ablation"}


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_every_grid_is_of_valid_entries(name: str) -> None:
    example, swept = METHODS[name].example, {field for entry in GRIDS[name] for field in entry}
    base = {field: value for field, value in example.items() if field not in swept}
    entries = [{**base, **fields} for fields in GRIDS[name]]
    parsed = {item.fingerprint() for entry in entries for item in REGISTRY.parse([entry])}
    assert len(parsed) == len(entries)


UNADVISED = {"coefficient": 1.0, "alpha": PUBLISHED}
"""What the default is with an artifact that has none of its own."""


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_every_grid_is_weakest_first_and_has_the_default(name: str) -> None:
    method = METHODS[name]
    neutral = method.neutral
    assert neutral is not None

    def distance(entry: Mapping[str, Any]) -> float:
        """From neutral; of factors, that of the logarithms."""
        defaults = {f: method.model_fields[f].default for f in neutral}
        filled = {f: UNADVISED[f] if v is None else v for f, v in defaults.items()} | dict(entry)
        values = [(filled[f], v) for f, v in neutral.items()]
        return sum(abs(math.log(value)) if at else abs(value) for value, at in values)

    distances = [distance(entry) for entry in GRIDS[name]]
    assert distances == pytest.approx(sorted(distances))
    assert {} in GRIDS[name] or method.model_fields["gain"].is_required()
