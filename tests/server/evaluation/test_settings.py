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
from saccade_server.evaluation.grids import GRIDS
from saccade_server.evaluation.settings import Setting, listed_settings, read_settings

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


def test_every_grid_is_of_a_method_and_its_fields() -> None:
    methods = Registry.discover().methods
    assert GRIDS.keys() <= methods.keys()
    for name, grid in GRIDS.items():
        fields = methods[name].model_fields
        assert len({json.dumps(entry) for entry in grid}) == len(grid)
        assert all(entry.keys() <= fields.keys() for entry in grid)


UNADVISED = {"coefficient": 1.0, "alpha": PUBLISHED}
"""What the default is with an artifact that has none of its own."""


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_every_grid_is_weakest_first_and_has_the_default(name: str) -> None:
    method = Registry.discover().methods[name]
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
