"""What ``saccade inspect`` asks a server: one answer, or those that a threshold is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from saccade_server.calibration.examples import Labelled
from saccade_server.detectors.anatomy_of_a_lie import FEATURES, AnatomyOfALie
from saccade_server.detectors.base import Detector
from saccade_server.detectors.calibrating import (
    Calibrated,
    calibrate,
    calibrate_density,
    is_right,
)
from saccade_server.detectors.roc import TooFewAnswers
from saccade_server.evaluation.asking import Asker

CONCURRENCY = 16


@dataclass(frozen=True)
class Where:
    """The server to ask: at a URL, or one in this process with these engine options."""

    url: str | None = None
    api_key: str | None = None
    model: str | None = None
    artifacts: Path | None = None
    engine: Mapping[str, Any] | None = None


@asynccontextmanager
async def opened(where: Where) -> AsyncIterator[Asker]:
    """A server that answers.

    Raises:
        EvaluationError: nobody is there.
        ValueError: the model or the options make no sense.
    """
    if where.url is not None:
        headers = {"Authorization": f"Bearer {where.api_key}"} if where.api_key else {}
        async with httpx2.AsyncClient(base_url=where.url, headers=headers, timeout=600) as client:
            yield await Asker.connect(client, CONCURRENCY)
        return
    from saccade_server.config import engine_config, served_name
    from saccade_server.inprocess import open_server

    config = engine_config(where.model, **(where.engine or {}))
    name = served_name(where.model, None)
    async with open_server(config, name, artifacts=where.artifacts) as client:
        yield await Asker.connect(client, CONCURRENCY)


@dataclass(frozen=True)
class Inspected:
    """An answer, its tokens' texts, and what the detector found."""

    text: str
    tokens: list[str]
    found: dict[str, Any]


async def inspect(
    asker: Asker,
    entry: Mapping[str, Any],
    messages: list[dict[str, Any]],
    interventions: Sequence[dict[str, Any]],
    sampling: Mapping[str, Any],
) -> Inspected:
    """Ask once.

    Raises:
        SettingRefused: the server does not do this.
        EvaluationError: it failed.
    """
    asked = {"detectors": [dict(entry)], "logprobs": True, **sampling}
    answer = await asker.chat(messages, interventions, asked)
    choice = answer["choices"][0]
    tokens = [token["token"] for token in choice["logprobs"]["content"]]
    return Inspected(choice["message"]["content"] or "", tokens, choice["detectors"][0])


@dataclass(frozen=True)
class Answered:
    """What labelled prompts gave: a score each, or three features; NaN where there is none."""

    scores: np.ndarray[Any, np.dtype[np.float64]]
    wrong: np.ndarray[Any, np.dtype[np.bool_]]


async def answers(
    asker: Asker,
    detector: Detector,
    examples: Sequence[Labelled],
    sampling: Mapping[str, Any],
    advance: Callable[[], None] = lambda: None,
) -> Answered:
    """Ask every labelled prompt; the answer is wrong unless it begins with the label.

    Raises:
        SettingRefused: the server does not do this.
        EvaluationError: it failed.
    """
    entry = detector.model_dump(exclude_defaults=True) | {"name": detector.detector_id()}
    entry.pop("threshold", None)

    async def one(example: Labelled) -> tuple[Any, bool]:
        got = await inspect(asker, entry, example.as_chat(), (), sampling)
        advance()
        return _score(detector, got.found), not is_right(got.text, example.right)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(example)) for example in examples]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    scores, wrong = zip(*(task.result() for task in tasks), strict=True)
    return Answered(np.array(scores, np.float64), np.array(wrong, bool))


def calibrated(detector: Detector, found: Answered, most: float) -> Calibrated:
    """A threshold, and for ``anatomy_of_a_lie`` without a density one of these.

    Raises:
        TooFewAnswers: the message says of which.
    """
    rows = found.scores.reshape(len(found.scores), -1)
    there = ~np.isnan(rows).any(1)
    if not there.any():
        raise TooFewAnswers("no answer has a score; inspect one to see why")
    if _fits(detector):
        return calibrate_density(found.scores[there], found.wrong[there], most)
    return calibrate(found.scores[there], found.wrong[there], detector.suspect, most)


def _fits(detector: Detector) -> bool:
    return isinstance(detector, AnatomyOfALie) and detector.artifact is None


def _score(detector: Detector, found: Mapping[str, Any]) -> Any:
    if _fits(detector):
        return [found["values"].get(name, np.nan) for name in FEATURES]
    return np.nan if found["score"] is None else found["score"]
