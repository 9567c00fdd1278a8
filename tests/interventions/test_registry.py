"""Discovery, what the server tells about methods, and fingerprints of entries."""

import json
from typing import ClassVar, Literal

import pytest

from saccade_interventions import plugins as module
from saccade_interventions.base import DIALECT, Intervention
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.methods.pai import PAI
from saccade_interventions.methods.var import VAR
from saccade_interventions.plan import Plan
from saccade_interventions.plugins import PluginError
from saccade_interventions.registry import Registry
from saccade_testing.plans import context_of


class Other(Intervention):
    """A method from another package."""

    title: ClassVar[str] = "Other"
    summary: ClassVar[str] = "Nothing."
    paper: ClassVar[str] = "none"
    level: ClassVar[str] = "attention_score"
    current_version: ClassVar[str] = "7"
    example: ClassVar[dict] = {"method": "other"}

    method: Literal["other"] = "other"

    def compile(self, context: Context) -> Plan:
        return context.plan().build()


class Impostor(Other):
    """A second method of a taken name."""

    method: Literal["var"] = "var"


class Point:
    """Enough of an entry point."""

    name = "point"

    def __init__(self, target):
        self.load = lambda: target


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    def run(target):
        monkeypatch.setattr(
            module, "entry_points", lambda group: [Point(target)] if group == module.GROUP else []
        )

    return run


def test_built_in_methods(registry: Registry):
    assert {"locore", "pai", "pasta", "var"} <= set(registry.methods)


def test_methods_of_other_packages(install):
    install(Other)
    registry = Registry.discover()
    assert "other" in registry.methods
    assert registry.parse([{"method": "other", "version": "7"}]) == (Other(version="7"),)


def test_two_methods_of_one_name(install):
    install(Impostor)
    with pytest.raises(ValueError, match=r"'var': .*methods\.var\.VAR and .*Impostor"):
        Registry.discover()


@pytest.mark.parametrize("target", [dict, print, Intervention])
def test_an_entry_point_that_is_no_method(install, target):
    install(target)
    with pytest.raises(PluginError, match="'point'"):
        Registry.discover()


@pytest.mark.parametrize("method", ["pai", "pasta", "var"])
def test_a_method_describes_itself(registry: Registry, method):
    about = json.loads(json.dumps(registry.describe(method), allow_nan=False))
    assert about["id"] == method
    assert about["version"] == "1"
    assert "arXiv" in about["paper"]
    assert about["level"] in ("attention_score", "attention_mass")
    assert about["needs_image"] == (method != "pasta")
    schema = about["schema"]
    assert schema["$schema"] == DIALECT
    assert schema["additionalProperties"] is False
    assert "method" in schema["required"]
    assert schema["properties"]["method"]["const"] == method
    assert schema["properties"]["rows"]["default"] == about["rows"]
    assert all(
        field.get("description") for name, field in schema["properties"].items() if name != "method"
    )


def test_bounds_and_defaults_are_in_the_schema(registry: Registry):
    field = registry.describe("var")["schema"]["properties"]["move_fraction"]
    assert (field["default"], field["minimum"], field["maximum"]) == (0.4, 0, 1)


@pytest.mark.parametrize("method", ["locore", "pai", "pasta", "var"])
def test_examples_work(registry: Registry, method):
    text = "Answer in JSON please."
    offsets = [(i, i + 1) for i in range(len(text))]
    context = context_of(Prompt(len(text), ((1, 4),), text, offsets))
    assert compile_plan(registry.parse([registry.describe(method)["example"]]), context).edits


def test_the_listing_says_what_a_model_supports(registry: Registry):
    def reasons(**facts):
        lines = registry.listing(context_of(Prompt(1), **facts).model)
        assert all(line["supported"] == (line["reason"] is None) for line in lines)
        return {line["id"]: line["reason"] for line in lines}

    assert not any(reasons().values())
    text_model = reasons(accepts_images=False)
    assert text_model["pasta"] is None
    assert text_model["locore"] is None
    assert text_model["pai"] == text_model["var"] == "the model takes no images"
    assert "sink_dims" in reasons(sink_dims=())["var"]


def test_describing_an_unknown_method(registry: Registry):
    with pytest.raises(ValueError, match='did you mean "pasta"'):
        registry.describe("pasto")


def test_fingerprints_are_of_the_content(registry: Registry):
    def fingerprint(**entry):
        return registry.parse([entry])[0].fingerprint()

    base = fingerprint(method="var", move_fraction=0.4, layers=[2, 3])
    assert base.startswith("sha256:")
    assert base == fingerprint(layers=[2, 3], method="var")
    assert base == fingerprint(layers=[3, 2], method="var", version="1")
    assert base != fingerprint(layers=[2], method="var")
    assert base != fingerprint(layers=[2, 3], method="var", move_fraction=0.6)
    assert fingerprint(method="pai", alpha=1) == fingerprint(method="pai", alpha=1.0)
    assert VAR().fingerprint() != PAI().fingerprint()


def test_entries_do_not_change(registry: Registry):
    entry = registry.parse([{"method": "pai"}])[0]
    with pytest.raises(ValueError, match="frozen"):
        entry.alpha = 3.0
