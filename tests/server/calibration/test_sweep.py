"""Head by head: what is asked, what is kept, and how a stopped sweep goes on."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saccade_server.calibration.examples import CalibrationError, Labelled
from saccade_server.calibration.heads import Swept, helpful, ranked
from saccade_server.calibration.sweep import Head, Result, Sweep, by_answer, by_first_token
from saccade_server.evaluation.asking import UNTHINKING, Asker, Reply
from saccade_server.evaluation.errors import EvaluationError, SettingRefused
from saccade_server.evaluation.log import WorkLog

EXAMPLES = [Labelled(f"p:{at}", (("user", f"{at}"),), (), "Yes.") for at in range(4)]
HEADS: list[Head] = [(0, 0), (0, 1), (1, 0)]


class Model:
    """Head (0, 1) makes every answer right; plain, the even prompts are."""

    def __init__(self, stop_at: int = 10**9) -> None:
        self.asked: list[Any] = []
        self.stop_at = stop_at

    async def ask(self, messages: Any, entries: Any, sampling: Any) -> Reply:
        if len(self.asked) == self.stop_at:
            raise EvaluationError("gone")
        self.asked.append((messages[0]["content"], entries, sampling))
        heads = entries[0]["heads"] if entries else {}
        right = heads == {"0": [1]} or int(messages[0]["content"]) % 2 == 0
        return Reply(" Yes. It is." if right else "No.", 3)


def entries(head: Head) -> list[dict[str, Any]]:
    return [{"method": "act", "heads": {str(head[0]): [head[1]]}}]


def run(model: Any, path: Path, facts: Any = (), examples: Any = EXAMPLES) -> Any:
    with WorkLog(path) as log:
        sweep = Sweep(model, examples, entries, by_answer, log, list(facts))
        return asyncio.run(sweep.run(HEADS))


def test_each_head_is_tried_alone(tmp_path: Path) -> None:
    model = Model()
    plain, found = run(model, tmp_path / "log")
    assert plain == Result(2, 4)
    assert {head: result.right for head, result in found.items()} == {
        (0, 0): 2,
        (0, 1): 4,
        (1, 0): 2,
    }
    assert len(model.asked) == 16
    assert model.asked[0][2] == {"temperature": 0, "max_tokens": 5, **UNTHINKING}


def test_a_stopped_sweep_goes_on(tmp_path: Path) -> None:
    whole = run(Model(), tmp_path / "whole")
    with pytest.raises(EvaluationError, match="gone"):
        run(Model(stop_at=9), tmp_path / "log")
    rest = Model()
    assert run(rest, tmp_path / "log") == whole
    assert len(rest.asked) == 8  # plain and one head were done


def test_a_label_of_many_bytes_has_room(tmp_path: Path) -> None:
    """A tokenizer may give each byte a token of its own."""

    class Bytes(Model):
        async def ask(self, messages: Any, entries: Any, sampling: Any) -> Reply:
            said = " \u662f\u7684\u3002 More.".encode()[: sampling["max_tokens"]]
            return Reply(said.decode(errors="ignore"), sampling["max_tokens"])

    label = [Labelled("p:1", (("user", "0"),), (), "\u662f\u7684\u3002")]
    plain, _ = run(Bytes(), tmp_path / "log", examples=label)
    assert plain == Result(1, 1)


@pytest.mark.parametrize("other", ["facts", "examples"])
def test_another_sweeps_log_is_refused(tmp_path: Path, other: str) -> None:
    run(Model(), tmp_path / "log")
    change = {"facts": {"facts": ["beta 0.2"]}, "examples": {"examples": EXAMPLES[:3]}}[other]
    with pytest.raises(EvaluationError, match="of another calibration"):
        run(Model(), tmp_path / "log", **change)


def test_a_sweep_that_got_nothing_leaves_its_log_to_any_other(tmp_path: Path) -> None:
    class Refusing(Model):
        async def ask(self, messages: Any, entries: Any, sampling: Any) -> Reply:
            raise SettingRefused("there is no layer 9")

    with pytest.raises(CalibrationError, match="there is no layer 9"):
        run(Refusing(), tmp_path / "log")
    plain, _ = run(Model(), tmp_path / "log", facts=["beta 0.2"])
    assert plain.total == len(EXAMPLES)


def test_a_refused_prompt_is_named(tmp_path: Path) -> None:
    class Refusing(Model):
        async def ask(self, messages: Any, entries: Any, sampling: Any) -> Reply:
            raise SettingRefused("too long")

    with pytest.raises(CalibrationError, match=r"p:\d: too long"):
        run(Refusing(), tmp_path / "log")


@pytest.mark.parametrize(
    ("tokens", "right", "probability"),
    [
        ({"Yes": 0.6, "No": 0.3, " Y": 0.05}, True, 0.65),
        ({"No": 0.6, "Yes.": 0.3, "Yess": 0.05, "\n": 0.02}, False, 0.3),
        ({"No": 0.9, "Maybe": 0.01}, False, 0.01),  # no more than the last one that is known
    ],
)
def test_the_labels_probability(tokens: dict[str, float], right: bool, probability: float) -> None:
    class Telling:
        async def likely_tokens(self, messages: Any, entries: Any, count: int) -> dict[str, float]:
            return {text: math.log(share) for text, share in tokens.items()}

    found = asyncio.run(by_first_token(Telling(), [], EXAMPLES[0], []))  # type: ignore[arg-type]
    assert found[0] is right
    assert found[1] == pytest.approx(math.log(probability))


@pytest.mark.parametrize("measure", [by_answer, by_first_token])
@pytest.mark.parametrize(
    ("turns", "continued"),
    [((("user", "Count."),), False), ((("user", "Count."), ("assistant", "one two")), True)],
)
def test_an_assistants_message_is_continued(measure: Any, turns: Any, continued: bool) -> None:
    """Otherwise the label would be looked for in a second answer behind a finished one."""

    class Client:
        async def request(self, method: str, path: str, json: Any) -> Any:
            self.body = json
            likely = {"content": [{"top_logprobs": [{"token": " three", "logprob": -0.5}]}]}
            choice = {"message": {"content": " three"}, "logprobs": likely}
            reply = {"choices": [choice], "usage": {"completion_tokens": 1}}
            return SimpleNamespace(status_code=200, json=lambda: reply)

    client, example = Client(), Labelled("p:1", turns, (), "three")
    asker = Asker(client, "m", 1)
    right, _ = asyncio.run(measure(asker, example.as_chat(), example, []))
    assert right
    assert client.body.get("continue_final_message", False) is continued


def test_the_rule_for_act_and_the_ranking() -> None:
    heads = {(0, 0): Result(52, 100), (0, 1): Result(51, 100), (1, 1): Result(60, 100)}
    swept = Swept("", Result(50, 100), heads)
    assert helpful(swept, 0.01) == [(1, 1), (0, 0)]
    assert helpful(swept, 0.2) == []
    logs = {(0, 0): Result(1, 9, -1.0), (0, 1): Result(1, 9, -3.0), (1, 1): Result(1, 9, -0.5)}
    swept = Swept("", Result(1, 9, -0.8), logs)
    assert helpful(swept, 0.1) == [(1, 1)]
    assert [head for head, _ in ranked(swept)] == [(0, 1), (0, 0), (1, 1)]
    assert ranked(swept)[0][1] == pytest.approx(2.2)
