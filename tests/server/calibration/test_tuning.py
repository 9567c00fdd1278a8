"""Two halves of the prompts, and what is tried on one of them."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saccade_interventions.artifacts import write_artifact
from saccade_server.calibration import tuning as module
from saccade_server.calibration.examples import CalibrationError, Labelled
from saccade_server.calibration.judging import Setting, choose
from saccade_server.calibration.scoring import Case, Score, case_of, scoring
from saccade_server.calibration.tuning import (
    Tuned,
    halves,
    kind_of,
    spread,
    try_strengths,
)
from saccade_server.config import engine_config
from saccade_server.engine.load import load_core
from saccade_server.evaluation.errors import EvaluationError
from saccade_server.evaluation.log import WorkLog
from saccade_server.models.prompt import PromptProcessor

FINGERPRINT = "sha256:" + "a" * 64
PLACES, STRENGTHS = (1, 2, 3, 4), (0.25, 0.5, 1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def prompts() -> PromptProcessor:
    return PromptProcessor.load(engine_config().model)


def example(text: str = "Is there a red circle?", **fields: Any) -> Labelled:
    return replace(Labelled("p:1", (("user", text),), (), "positive"), **fields)


def said(text: str) -> Labelled:
    return example(turns=(("user", "Is there a red circle?"), ("assistant", text)))


def test_halves_have_the_same_classes_and_keep_pairs_together() -> None:
    assert halves([True, False] * 4).tolist() == [True, True, False, False] * 2
    assert halves([True] * 4 + [False] * 5).tolist() == [True, False] * 4 + [True]


@pytest.mark.parametrize("positives", [[True] * 3 + [False] * 9, [True] * 9 + [False] * 3])
def test_too_few_for_two_halves(positives: list[bool]) -> None:
    with pytest.raises(CalibrationError, match="too few for two halves; give at least 4 of each"):
        halves(positives)


def test_by_what_prompts_are_judged() -> None:
    answered = example(answer="Yes.")
    assert kind_of([answered, answered]) == "answers"
    assert kind_of([said("Yes."), said("No.")]) == "messages"
    assert kind_of([example(), example()]) is None
    assert kind_of([example(), said("No.")]) is None
    assert kind_of([replace(said("It is"), answer=" red.")]) == "answers"
    with pytest.raises(CalibrationError, match="p:7: it has no answer, and other lines have"):
        kind_of([answered, example(place="p:7"), answered])


def test_residuals_of_a_deep_model_are_tried_evenly() -> None:
    assert spread(range(1, 6)) == [1, 2, 3, 4, 5]
    found = spread(range(1, 30))
    assert (found[0], found[-1], len(found)) == (1, 29, 10)
    assert {b - a for a, b in pairwise(found)} <= {3, 4}


def test_the_continuation_is_what_the_model_would_have_to_say(prompts: PromptProcessor) -> None:
    case = case_of(example(), prompts, "Yes.")
    assert case.prompt.tokens == prompts.chat(example().as_messages()).tokens
    assert prompts.text(case.continuation[:-1]).strip() == "Yes."
    assert case.continuation[-1] in prompts.eos_token_ids
    message = case_of(said("Yes."), prompts)
    assert message.continuation == case.continuation
    assert message.prompt.tokens == case.prompt.tokens
    begun = case_of(said("There is a"), prompts, " red circle.")
    assert prompts.text(begun.prompt.tokens).endswith("There is a")
    assert prompts.text(begun.continuation[:-1]).strip() == "red circle."


def test_scores_are_those_of_greedy_answers(prompts: PromptProcessor) -> None:
    """The answer that is given without steering is right, and no other."""

    async def run() -> list[Score]:
        async with scoring(load_core(engine_config(threads=1)), prompts, {}) as scorer:
            cases = [case_of(example(), prompts, answer) for answer in ("Yes.", "No.")]
            return await scorer.score(cases, None)

    yes, no = asyncio.run(run())
    assert yes.right is not no.right
    assert (yes.logprob > no.logprob) is yes.right
    assert math.exp(yes.logprob) + math.exp(no.logprob) == pytest.approx(1, abs=0.05)


class FakeScorer:
    """Steering helps most at residual 3 and strength 1, and ruins the negatives from 2 on."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def score(self, cases: Sequence[Case], entry: Mapping[str, Any] | None) -> list[Score]:
        self.asked.append(entry)
        if entry is None:
            return [Score(-1.0, True) for _ in cases]
        (place,), strength = entry["layers"], entry["coefficient"]
        peak = 2.0 - abs(place - 3) - abs(math.log2(strength))
        ruined = strength >= 2
        return [
            Score(-1.0 + peak + 0.01 * at, not (ruined and at % 2)) for at, _ in enumerate(cases)
        ]


def attempt(
    prompts: PromptProcessor,
    log: Path,
    fake: FakeScorer,
    monkeypatch: pytest.MonkeyPatch,
    keep: Sequence[Labelled] = (),
) -> Tuned:
    tensors = {"vectors": np.eye(4, 192), "layers": np.array(PLACES)}
    data = write_artifact("vectors", FINGERPRINT, tensors)
    entries = {
        Setting(place, strength): {"layers": [place], "coefficient": strength}
        for place in PLACES
        for strength in STRENGTHS
    }

    @asynccontextmanager
    async def faked(*arguments: Any) -> AsyncIterator[FakeScorer]:
        yield fake

    monkeypatch.setattr(module, "scoring", faked)
    core: Any = SimpleNamespace(info=SimpleNamespace(dtype="float32"))
    held_out = [example(answer="Yes." if at % 2 else "No.") for at in range(12)]
    with WorkLog(log) as work:
        tried = try_strengths(
            core,
            prompts,
            data,
            entries,
            "answers",
            held_out,
            [at % 2 == 0 for at in range(12)],
            keep,
            work,
        )
        return asyncio.run(tried)


def test_the_known_best_is_found_and_a_rerun_asks_nothing(
    prompts: PromptProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, first, again = tmp_path / "log", FakeScorer(), FakeScorer()
    tuned = attempt(prompts, log, first, monkeypatch)
    assert choose(tuned.trials) == Setting(3, 1.0)
    assert (tuned.held_out, tuned.right, len(tuned.trials)) == (12, 12, 20)
    ruined = {setting for setting, trial in tuned.trials.items() if trial.ruins}
    assert ruined == {setting for setting in tuned.trials if setting.strength >= 2}
    assert attempt(prompts, log, again, monkeypatch) == tuned
    assert not again.asked
    assert len(first.asked) == 22  # plain, kept and plain, and every entry


def test_kept_prompts_are_asked_only_where_something_is_gained(
    prompts: PromptProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their right answer is the answer, or else the label."""
    fake = FakeScorer()
    keep = [example(answer="No.", label="positive"), example(label="No.")]
    tuned = attempt(prompts, tmp_path / "log", fake, monkeypatch, keep)
    gained = [t for s, t in tuned.trials.items() if s.strength < 2 and t.gain > 0]
    assert len(fake.asked) == 22 + len(gained)
    assert choose(tuned.trials) == Setting(3, 1.0)


def test_a_log_of_something_else_is_refused(
    prompts: PromptProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.write_text(json.dumps({"tuning": "another"}) + "\n")
    with pytest.raises(EvaluationError, match="of another calibration"):
        attempt(prompts, log, FakeScorer(), monkeypatch)
