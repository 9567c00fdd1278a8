"""Answers of the demo model about held-out scenes, with what every detector found in them.

Labels are the scene's. A caption is wrong if it names something absent, a mention in it if that
thing is absent, and an answer to a question if it is not the right one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saccade_server.demo.questions import Kind, things_named
from saccade_server.demo.scenes import COLORS, SHAPES, Thing
from saccade_server.demo.splits import Example, Split, companion_examples, examples
from saccade_server.detectors.calibrating import is_right
from saccade_server.evaluation.asking import Asker, user_message
from saccade_server.evaluation.images import data_url

ENTRIES: tuple[Mapping[str, Any], ...] = (
    {"name": "svar"},
    {"name": "vhd"},
    {"name": "anatomy_of_a_lie"},
    {"name": "waad"},
    {"name": "fai", "near": 2},
    {"name": "sinks"},
)
"""At their defaults, but for FAI: captions of a dozen tokens have no row ten tokens behind most."""

NEEDS_SYSTEM: tuple[Mapping[str, Any], ...] = ({"name": "vas"},)
SYSTEM = "You answer questions about images."
"""VAS divides by the attention to a system prompt; chats of the demo model have none."""

MOST_TOKENS = 40
NAMED = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b")

Values = np.ndarray[Any, Any]
Scores = dict[str, float]
"""Measure -> score; NaN where there is none."""


@dataclass(frozen=True)
class Judged:
    """Something that is right or wrong. ``scene`` tells its scene from others."""

    scene: str
    wrong: bool
    scores: Scores


@dataclass
class Gathered:
    """Of some splits: captions as wholes, what they mention, and questions about companions."""

    captions: list[Judged] = field(default_factory=list)
    mentions: list[Judged] = field(default_factory=list)
    questions: list[Judged] = field(default_factory=list)


async def gather(asker: Asker, splits: Sequence[Split], scenes: int, seed: int) -> Gathered:
    """Ask about so many scenes of each split: a caption, and whether the companion is there."""
    found = Gathered()
    for split in splits:
        captions = list(examples(split, Kind.DESCRIBE, scenes, seed=seed))
        questions = list(companion_examples(split, scenes, seed=seed))
        for number, (example, got) in enumerate(await _all(asker, captions)):
            scene = f"{split.value}/{number}"
            present = set(example.scene.things)
            wrong = not set(things_named(got.text)) <= present
            found.captions.append(Judged(scene, wrong, got.answer))
            for thing, scores in got.mentions():
                found.mentions.append(Judged(scene, thing not in present, scores))
        for number, (example, got) in enumerate(await _all(asker, questions)):
            wrong = not is_right(got.text, example.answer)
            found.questions.append(Judged(f"{split.value}/{number}", wrong, got.answer))
    return found


@dataclass(frozen=True)
class Scored:
    """An answer: its tokens' texts, scores of the whole, and scores of tokens by measure."""

    text: str
    texts: Sequence[str]
    answer: Scores
    tokens: Mapping[str, Values]

    def mentions(self) -> Iterator[tuple[Thing, Scores]]:
        """Every thing named, with the means of its tokens' scores."""
        ends = np.cumsum([len(text) for text in self.texts])
        starts = ends - [len(text) for text in self.texts]
        for match in NAMED.finditer("".join(self.texts)):
            own = (starts < match.end()) & (ends > match.start())
            scores = {name: _mean(values[own]) for name, values in self.tokens.items()}
            scores["evidence"] = self.answer["evidence"]
            yield Thing(match[1], match[2]), scores


async def _all(asker: Asker, asked: Sequence[Example]) -> list[tuple[Example, Scored]]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_one(asker, example)) for example in asked]
    return [(example, task.result()) for example, task in zip(asked, tasks, strict=True)]


async def _one(asker: Asker, example: Example) -> Scored:
    messages = user_message(example.question, [data_url(example.image)])
    sampling = {"temperature": 0, "max_tokens": MOST_TOKENS, "logprobs": True}
    said = await asker.chat(messages, (), {**sampling, "detectors": list(ENTRIES)})
    choice = said["choices"][0]
    content = choice["logprobs"]["content"]
    logprobs = np.array([token["logprob"] for token in content])
    answer: Scores = {"likelihood": float(logprobs.mean())}
    tokens = {"likelihood": logprobs}
    for found in choice["detectors"]:
        _take(found, answer, tokens)
    return Scored(choice["message"]["content"], [t["token"] for t in content], answer, tokens)


def _take(found: Mapping[str, Any], answer: Scores, tokens: dict[str, Values]) -> None:
    values = found["values"]
    if found["name"] == "anatomy_of_a_lie":
        answer |= {name: values[name] for name in ("evidence", "conflict", "decision")}
        tokens["conflict"] = np.array(values["conflicts"])
        tokens["decision"] = np.array(values["decisions"])
        return
    answer[found["name"]] = np.nan if found["score"] is None else found["score"]
    if found["tokens"] is not None:
        tokens[found["name"]] = np.array(found["tokens"], np.float64)


async def gather_vas(asker: Asker, splits: Sequence[Split], scenes: int, seed: int) -> Gathered:
    """Captions and questions behind a system prompt, with VAS alone."""
    found = Gathered()
    for split in splits:
        captions = list(examples(split, Kind.DESCRIBE, scenes, seed=seed))
        questions = list(companion_examples(split, scenes, seed=seed))
        for number, example in enumerate(captions):
            text, scores = await _with_system(asker, example)
            wrong = not set(things_named(text)) <= set(example.scene.things)
            found.captions.append(Judged(f"{split.value}/{number}", wrong, scores))
        for number, example in enumerate(questions):
            text, scores = await _with_system(asker, example)
            wrong = not is_right(text, example.answer)
            found.questions.append(Judged(f"{split.value}/{number}", wrong, scores))
    return found


async def _with_system(asker: Asker, example: Example) -> tuple[str, Scores]:
    messages = [
        {"role": "system", "content": SYSTEM},
        *user_message(example.question, [data_url(example.image)]),
    ]
    sampling = {"temperature": 0, "max_tokens": MOST_TOKENS, "detectors": list(NEEDS_SYSTEM)}
    said = await asker.chat(messages, (), sampling)
    choice = said["choices"][0]
    (found,) = choice["detectors"]
    score = np.nan if found["score"] is None else found["score"]
    return choice["message"]["content"], {"vas": score}


def _mean(values: Values) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
