"""Trying directions of one half of the prompts on the other half, at several strengths.

Prompts are dealt to the halves in turn within each class, in the order of the file, so both halves
have the same classes, and pairs of a positive and a negative prompt that stand together stay
together. What was tried is kept in a log beside the output, so that a rerun goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saccade_interventions.artifacts import read_artifact
from saccade_server import __version__
from saccade_server.calibration.examples import CalibrationError, Labelled
from saccade_server.calibration.judging import Judge, Kind, Setting, Trial
from saccade_server.calibration.scoring import Case, Score, Scorer, case_of, scoring
from saccade_server.engine.core import EngineCore
from saccade_server.evaluation.log import WorkLog
from saccade_server.models.prompt import PromptProcessor

LEAST_OF_A_CLASS = 4
"""Two for each half: one alone has no spread."""
MOST_PLACES = 10
"""Residuals that are tried where nobody names them: neighbours are alike."""


@dataclass(frozen=True)
class Tuning:
    """How to tune. ``keep``: prompts whose answers are to stay right; ``strengths``: to try."""

    strengths: tuple[float, ...]
    keep: Path | None = None


@dataclass(frozen=True)
class Tuned:
    """What came of it. ``held_out``: how many prompts judged; ``right``: plain, of these."""

    kind: Kind
    held_out: int
    right: int
    trials: Mapping[Setting, Trial]


def halves(positives: Sequence[bool]) -> torch.Tensor:
    """bool [prompts], true for those that directions are found on.

    Raises:
        CalibrationError: too few of a class.
    """
    counts = {True: 0, False: 0}
    mine = []
    for positive in positives:
        mine.append(counts[positive] % 2 == 0)
        counts[positive] += 1
    if min(counts.values()) < LEAST_OF_A_CLASS:
        raise CalibrationError(
            f"{counts[True]} positive and {counts[False]} negative prompts are too few for two "
            f"halves; give at least {LEAST_OF_A_CLASS} of each class, or --no-tune"
        )
    return torch.tensor(mine)


def kind_of(examples: Sequence[Labelled]) -> Kind | None:
    """By what the prompts can be judged; None: by nothing.

    Raises:
        CalibrationError: some lines say what is right and some do not.
    """
    silent = [example for example in examples if example.answer is None]
    if not silent:
        return "answers"
    if len(silent) < len(examples):
        message = "it has no answer, and other lines have; give all of them one, or none"
        raise CalibrationError(f"{silent[0].place}: {message}")
    return "messages" if all(example.said is not None for example in examples) else None


def spread(places: Sequence[int]) -> list[int]:
    """At most :data:`MOST_PLACES` of them, evenly."""
    if len(places) <= MOST_PLACES:
        return list(places)
    step = (len(places) - 1) / (MOST_PLACES - 1)
    return [places[round(at * step)] for at in range(MOST_PLACES)]


async def try_strengths(
    core: EngineCore,
    prompts: PromptProcessor,
    data: bytes,
    entries: Mapping[Setting, Mapping[str, Any]],
    kind: Kind,
    held_out: Sequence[Labelled],
    positives: Sequence[bool],
    keep: Sequence[Labelled],
    log: WorkLog,
    advance: Callable[[], None] = lambda: None,
) -> Tuned:
    """Score the held-out prompts plain and under each entry.

    Args:
        data: the artifact of the other half, which the entries name.
        keep: prompts whose answers are to stay right.
        advance: called after each entry.

    Raises:
        CalibrationError: a prompt cannot be scored, or the log is of another calibration.
    """
    answered = kind == "answers"
    cases = [case_of(item, prompts, item.answer if answered else None) for item in held_out]
    kept = [case_of(item, prompts, item.right) for item in keep]
    artifact = read_artifact(data)
    facts = [__version__, core.info.dtype, artifact.digest, kind]
    work = _Work(log, facts, cases, kept)
    async with scoring(core, prompts, {artifact.digest: artifact}) as scorer:
        plain = await work.scores(scorer, cases, "plain", None)
        kept_plain = await work.scores(scorer, kept, "plain, kept", None)
        lengths = [len(case.continuation) for case in cases]
        judge = Judge(kind, positives, lengths, plain, kept_plain)
        trials: dict[Setting, Trial] = {}
        for setting, entry in entries.items():
            name = f"{setting.place} {setting.strength:g}"
            scores = await work.scores(scorer, cases, name, entry)
            trial = judge.trial(scores)
            if kept and trial.ruins is None and trial.gain > 0:
                after = await work.scores(scorer, kept, f"{name}, kept", entry)
                trial = judge.trial(scores, after)
            trials[setting] = trial
            advance()
    return Tuned(kind, len(cases), sum(score.right for score in plain), trials)


class _Work:
    """Scores, those of the log first."""

    def __init__(
        self, log: WorkLog, facts: Sequence[Any], cases: Sequence[Case], kept: Sequence[Case]
    ) -> None:
        digest = hashlib.sha256(json.dumps(list(facts)).encode())
        for case in (*cases, *kept):
            images = [image.digest for image in case.prompt.images]
            digest.update(json.dumps([case.prompt.tokens, images, case.continuation]).encode())
        self._log = log
        done = log.begin("tuning", digest.hexdigest())
        self._known = {entry["of"]: entry["scores"] for entry in done}

    async def scores(
        self, scorer: Scorer, cases: Sequence[Case], name: str, entry: Mapping[str, Any] | None
    ) -> list[Score]:
        if name not in self._known:
            found = await scorer.score(cases, entry)
            self._known[name] = [[score.logprob, score.right] for score in found]
            self._log.append({"of": name, "scores": self._known[name]})
        return [Score(logprob, right) for logprob, right in self._known[name]]
