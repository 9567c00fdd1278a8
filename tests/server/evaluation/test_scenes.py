"""The whole evaluation: roles, refusals, verdicts, tables; and once on the demo model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saccade_interventions.registry import Registry
from saccade_server.cli import app
from saccade_server.demo.questions import caption
from saccade_server.demo.splits import Split
from saccade_server.evaluation.asking import Reply
from saccade_server.evaluation.errors import SettingRefused
from saccade_server.evaluation.items import Item, Task
from saccade_server.evaluation.report import as_document, tables
from saccade_server.evaluation.scenes import Outcome, Scale, evaluate
from saccade_server.evaluation.settings import Setting, default_setting
from saccade_server.evaluation.verdict import verdict


def hallucinated(item: Item) -> str:
    """What the prior says: every missing companion is named, and every question is yes."""
    if item.task is Task.YES_NO:
        return "Yes."
    scene = item.example.scene
    more = "".join(f" and a {thing}" for thing in scene.missing_companions)
    return caption(scene).rstrip(".") + more + "."


def truthful(item: Item) -> str:
    return item.example.answer


class Answers:
    """`strength` n tells the truth on one scene of n; -1 is silent; above 9 it is refused."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def of(self, setting: Setting, items: Sequence[Item]) -> list[Reply]:
        self.asked.append((setting.name, len(items)))
        entry: dict[str, Any] = setting.interventions[0] if setting.interventions else {}
        strength = entry.get("strength", 0)
        if strength > 9:
            raise SettingRefused("too strong")
        return [Reply(self._text(item, strength), 3, ("applied",)) for item in items]

    def _text(self, item: Item, strength: int) -> str:
        if strength < 0:
            return "Nothing."
        speaks_truth = strength and item.index % strength == 0
        return truthful(item) if speaks_truth else hallucinated(item)


def setting(name: str, strength: int, *grid: int) -> Setting:
    entries = tuple(({"method": "x", "strength": value},) for value in grid)
    return Setting(name, ({"method": "x", "strength": strength},), entries)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    settings = [
        setting("truth", 2, 3, 1, 2, 10),
        setting("silent", -1),
        setting("idle", 0),
        setting("refused", 10),
    ]
    return asyncio.run(evaluate(Answers(), settings, Scale(12, (0, 1), 16)))  # type: ignore[arg-type]


def test_roles_and_refusals(outcome: Outcome) -> None:
    names = [measured.setting.name for measured in outcome.measured]
    assert names == ["none", "truth", "truth, tuned", "silent", "idle"]
    assert set(outcome.refused) == {"truth: strength 10", "refused"}
    assert outcome.refused["refused"] == "too strong"


def test_tuning_takes_the_best_strength_of_the_grid(outcome: Outcome) -> None:
    tuned = outcome.tuned["truth"]
    assert [entries[0]["strength"] for entries, _ in tuned.tried] == [3, 1, 2]
    assert tuned.setting.interventions[0]["strength"] == 1
    assert outcome.none is not None
    assert outcome.none.chair == 1
    assert "silent" not in outcome.tuned


def test_tuning_sees_the_validation_split_alone() -> None:
    answers = Answers()
    asyncio.run(evaluate(answers, [setting("t", 2, 1, 2)], Scale(2, (0,), 10)))  # type: ignore[arg-type]
    whole = 3 * 3 * 2
    validation = [("none", 10), ("t", 10), ("t", 10)]
    assert answers.asked == [("none", whole), *validation, ("t", whole), ("t, tuned", whole)]


REGISTRY = Registry.discover()
GRIDS = {name: kind.grid for name, kind in REGISTRY.methods.items() if kind.grid}


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_a_tie_goes_to_the_weaker_strength(name: str) -> None:
    """All strengths answer alike: the one nearest to neutral is chosen, default or not."""
    one = default_setting(name, REGISTRY)
    outcome = asyncio.run(evaluate(Answers(), [one], Scale(1, (0,), 4)))  # type: ignore[arg-type]
    chosen = outcome.tuned[name].setting.interventions
    assert chosen == ({"method": name, **GRIDS[name][0]},)
    named = [measured.setting.name for measured in outcome.measured]
    again = [] if chosen == one.interventions else [f"{name}, tuned"]
    assert named == ["none", name, *again], "a default that was chosen is not asked twice"


def test_figures(outcome: Outcome) -> None:
    none, truth, tuned, silent, idle = outcome.measured
    broken = Split.COUNTERFACTUAL
    assert none.figures[broken]["CHAIR_s"].estimate.value == 1
    assert none.figures[broken]["CHAIR_s"].change is None
    half = truth.figures[broken]["CHAIR_s"]
    assert half.estimate.value == 0.5
    assert half.estimate.n == 24
    assert half.by_seed == (0.5, 0.5)
    assert half.change is not None
    assert half.change.value == -0.5
    assert -0.8 < half.change.low < -0.5 < half.change.high < -0.2
    assert tuned.figures[broken]["accuracy"].estimate.value == 1
    assert silent.figures[broken]["unclear"].estimate.value == 1
    assert "precision" not in silent.figures[broken]
    assert idle.changed == 0
    assert truth.status == {"applied": 3 * 3 * 24}


def test_verdicts(outcome: Outcome) -> None:
    words = {measured.setting.name: verdict(measured).word for measured in outcome.measured[1:]}
    assert words["truth"] == words["truth, tuned"] == "helps"
    assert words["silent"] == "hurts"  # it names nothing absent, and nothing else either
    assert words["idle"] == "changes no answer"


def test_tables_and_document(outcome: Outcome) -> None:
    text = tables(outcome)
    assert "| truth, tuned |" in text
    assert "- `refused`: too strong" in text
    assert "**-50.0**" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.count(" | ") for line in lines[:7]}
    assert len(widths) == 1
    assert "| truth | `strength 1` | `strength 3`: 62.5%, " in text
    document = json.loads(json.dumps(as_document(outcome)))
    tuned = document["tuning"]["settings"]["truth"]
    assert tuned["chosen"][0]["strength"] == 1
    assert [trial["qualifies"] for trial in tuned["tried"]] == [True] * 3
    found = document["settings"][1]["splits"]["counterfactual"]["CHAIR_s"]
    assert (found["value"], found["change"]["value"], found["by_seed"]) == (0.5, -0.5, [0.5, 0.5])


def test_the_command_on_the_demo_model(tmp_path: Path) -> None:
    """Few scenes, one method, a file of settings; then again from the log."""
    settings = tmp_path / "s.toml"
    settings.write_text(
        "[[settings]]\nname = 'pai'\ninterventions = [{method = 'pai', alpha = 2.0}]\n"
        "grid = [[{method = 'pai', alpha = 0.1}]]\n"
        "[[settings]]\nname = 'odd'\ninterventions = [{method = 'pai', alpha = 'x'}]\n"
    )
    command = ["eval", "scenes", "--out", str(tmp_path / "out"), "--settings", str(settings)]
    sizes = ["--scenes", "2", "--seeds", "0", "--validation", "2", "--tune", "--threads", "1"]
    for _ in range(2):
        done = CliRunner().invoke(app, [*command, *sizes])
        assert done.exit_code == 0, done.output
        assert "pai, tuned" in done.output
        assert not [line for line in done.output.splitlines() if "|" in line or len(line) > 80]
    written = (tmp_path / "out" / "results.md").read_text()
    assert "| pai, tuned |" in written
    assert "- `odd`:" in written
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    none, pai, _ = document["settings"]
    assert none["splits"]["clear"]["exact"]["value"] == 1
    assert pai["receipts"] == {"applied": 18}
    asked = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert len(asked) == 3 * 18 + 2 + 2
    assert "interventions[0].alpha" in document["refused"]["odd"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1,x"], "no list of numbers"),
        (["--seeds", "1,1"], "a seed occurs twice"),
        (["--model", "/nothing/here"], "there is no such folder"),
        (["--url", "http://127.0.0.1:9"], "127.0.0.1"),
    ],
)
def test_what_the_command_cannot_do(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["eval", "scenes", "--out", str(tmp_path), *arguments])
    assert done.exit_code == (3 if "--model" in arguments else 2)
    assert message in done.output


def test_export_scenes(tmp_path: Path) -> None:
    command = ["eval", "export-scenes", "--out", str(tmp_path), "--count", "2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    path = tmp_path / "prompts.jsonl"
    assert done.output.replace("\n", "") == str(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["label"] in ("Yes.", "No.") for line in lines] == [True, True]
    for option, value in (("--split", "test"), ("--questions", "why")):
        assert CliRunner().invoke(app, [*command, option, value]).exit_code == 2
