"""Methods of other packages, really installed: offered if they use what there is, else refused."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plugins import PluginError
from saccade_interventions.registry import Registry
from saccade_testing.installed import METHOD, NEAR, install

MODEL = ModelFacts(layers=3, heads=2, kv_heads=2, head_dim=8, hidden_size=16)
CONTEXT = Context(MODEL, Prompt(9, ((2, 6),)))
NUMBERS = count()

Installed = Callable[..., str]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """``installed(source, **points)``: a package on the path; its name, which no other has."""

    def run(source: str, **points: str) -> str:
        package = f"their_methods_{next(NUMBERS)}"
        install(tmp_path, package, source, points)
        monkeypatch.syspath_prepend(str(tmp_path))
        return package

    return run


def test_a_method_on_the_rules_and_edits_that_there_are(installed: Installed) -> None:
    installed(NEAR, near="Near")
    registry = Registry.discover()
    plan = compile_plan(registry.parse([{"method": "near"}]), CONTEXT)
    halves: list[dict[str, Any]] = [
        {"method": "pai", "alpha": 0.3, "layers": [0, 1, 2]},
        {"method": "pai_contrast", "gamma": 1.5, "cutoff": 0.1},
    ]
    wanted = compile_plan(registry.parse(halves), CONTEXT)
    assert plan is not None
    assert wanted is not None
    assert plan.fingerprint() == wanted.fingerprint()
    assert plan.needs.branches[0].images == "deleted"
    assert (
        compile_plan(registry.parse([{"method": "near", "alpha": 0, "gamma": 1}]), CONTEXT) is None
    )


RULE = """

class Wishful(Rule, frozen=True):
    strength: float = 1.0
"""

FOREIGN = {
    "a rule of its own, which nothing uses": (RULE + NEAR, "Near", "a rule", "Wishful"),
    "a rule of its own in a plan": (
        RULE
        + METHOD
        + """
        plan = context.plan()
        plan.rule(Wishful())
        return plan.build()
""",
        "Odd",
        "a rule",
        "Wishful",
    ),
    "a rule made up while compiling": (
        METHOD
        + """
        kind = type("Sudden", (Rule,), {"__module__": "elsewhere"}, frozen=True)
        plan = context.plan()
        plan.rule(kind())
        return plan.build()
""",
        "Odd",
        "a rule",
        "Sudden",
    ),
    "a rule under a known one's name": (
        METHOD
        + """
        kind = type("ContrastRule", (ContrastRule,), {"__module__": "elsewhere"}, frozen=True)
        plan = context.plan()
        plan.rule(kind(own=2.0, other=1.0, cutoff=0.1, branch=Branch("same")))
        return plan.build()
""",
        "Odd",
        "a rule",
        "elsewhere.ContrastRule",
    ),
    "what only looks like a rule": (
        METHOD
        + """
        class Looks:
            source, silent = 0, False
            def needs(self):
                return ContrastRule(own=2.0, other=1.0, cutoff=0.1).needs()
            def sourced(self, source):
                return self
        plan = context.plan().build()
        object.__setattr__(plan, "rules", (Looks(),))
        return plan
""",
        "Odd",
        "a rule",
        "Looks",
    ),
    "an edit of its own": (
        METHOD
        + """
        from dataclasses import replace
        from saccade_interventions.edits import ScoreEdit
        class Sharper(ScoreEdit):
            pass
        plan = context.plan()
        image = plan.tag(all_images(context))
        plan.score(((1, (0, 1)),), [image], parse_rows("last"), absolute=0.5)
        made = plan.build()
        (edit,) = made.scores
        return replace(made, scores=(Sharper(**vars(edit)),))
""",
        "Odd",
        "an edit",
        "Sharper",
    ),
    "a plan of its own": (
        METHOD
        + """
        class Better(Plan):
            pass
        return Better(context.model.shape, context.prompt.length, 6, 1)
""",
        "Odd",
        "a plan",
        "Better",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_the_engine_has_no_code_for_is_refused_at_load(
    installed: Installed, case: str
) -> None:
    source, kind, what, name = FOREIGN[case]
    package = installed(source, point=kind)
    with pytest.raises(PluginError) as caught:
        Registry.discover()
    message = str(caught.value)
    assert message.startswith(f"{kind.lower()}, entry point 'point' of saccade.interventions of ")
    assert f"the package {package}, brings {what} of its own, " in message
    assert f"{name}: rules and edits are carried out by the engine's own code" in message


LATER = METHOD.replace("odd: bool = True", "odd: bool = False")


@pytest.mark.parametrize("case", [case for case in FOREIGN if "nothing uses" not in case])
def test_what_shows_only_in_a_request_is_refused_there(installed: Installed, case: str) -> None:
    source, _, what, name = FOREIGN[case]
    if "Wishful" in source:
        source = source.replace(RULE, "").replace(
            "Wishful()", 'type("Wishful", (Rule,), {"__module__": "elsewhere"}, frozen=True)()'
        )
    installed(source.replace(METHOD, LATER), point="Odd")
    registry = Registry.discover()
    assert compile_plan(registry.parse([{"method": "odd"}]), CONTEXT) is None
    entries = [{"method": "pai"}, {"method": "odd", "odd": True}]
    with pytest.raises(InterventionError) as caught:
        compile_plan(registry.parse(entries), CONTEXT)
    error = caught.value
    assert (error.code, error.param) == (Code.UNSUPPORTED_MODEL, "interventions[1].method")
    assert error.message.startswith(f"odd brings {what} of its own, ")
    assert f"{name}: rules" in error.message


def test_a_plan_that_cannot_be_sent(installed: Installed) -> None:
    """Numbers of numpy pass for numbers until they are written down."""
    installed(
        METHOD
        + """
        import numpy as np
        plan = context.plan()
        cutoff = np.float32(0.1)
        plan.rule(ContrastRule(own=2.0, other=1.0, cutoff=cutoff, branch=Branch("same")))
        return plan.build()
""",
        point="Odd",
    )
    with pytest.raises(InterventionError, match="odd makes a plan that the engine cannot read"):
        compile_plan(Registry.discover().parse([{"method": "odd"}]), CONTEXT)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named"),
        ("raise OSError(7)", "OSError: 7"),
    ],
)
def test_a_package_that_cannot_be_imported(installed: Installed, source: str, says: str) -> None:
    package = installed(source, near="Near")
    with pytest.raises(PluginError, match=rf"'near' .* of the package {package} .*loaded: {says}"):
        Registry.discover()


def test_a_class_that_is_not_there(installed: Installed) -> None:
    installed(NEAR, near="Far")
    with pytest.raises(PluginError, match=r"'near' .* cannot be loaded: AttributeError"):
        Registry.discover()


def test_a_method_that_does_not_fit_the_stand_in_is_left_to_the_self_test(
    installed: Installed,
) -> None:
    installed(METHOD + '        raise KeyError("it is made for other models")\n', point="Odd")
    assert "odd" in Registry.discover().methods
