"""What steering does to the tone of answers, and to their language."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from language.asked import Asked, Entries
from language.fluency import Judge, repetition
from language.paired import difference, mean, share

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE / "sentiment.jsonl"
"""Contrastive answers to calibrate with."""

TOKENS = 32
MOST_REPEATED = 0.5
WORD = re.compile(r"[a-z]+")


class Tone:
    """Counts the words of two lists; negation is not looked at."""

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        """``without``: words that do not count."""
        lists = tomllib.loads((HERE / "sentiment.toml").read_text())
        self._positive = frozenset(lists["positive"]) - without
        self._negative = frozenset(lists["negative"]) - without

    def __call__(self, text: str) -> float:
        """(positive - negative) / (positive + negative) words, from -1 to 1; 0 without any."""
        words = WORD.findall(text.lower())
        positive = sum(word in self._positive for word in words)
        negative = sum(word in self._negative for word in words)
        return (positive - negative) / max(positive + negative, 1)


def questions() -> list[str]:
    """The held-out ones."""
    return list(tomllib.loads((HERE / "sentiment.toml").read_text())["questions"])


def calibration_answers() -> list[tuple[str, str]]:
    """Question and answer of each line that vectors are made from."""
    lines = [json.loads(line) for line in EXAMPLES.read_text().splitlines()]
    return [(line["messages"][0]["content"], line["messages"][1]["content"]) for line in lines]


async def measure(
    asked: Asked, judge: Judge, settings: Mapping[str, Entries], count: int | None = None
) -> dict[str, Any]:
    """Each setting's answers to the first ``count`` held-out questions, compared with ``plain``.

    An answer is *broken* if over half of its runs of three words have occurred in it before, or if
    the plain model finds its tokens less likely than those of the hand-written answers that the
    vectors are made from.
    """
    written = calibration_answers()
    floor = mean([judge.logprob(*pair) for pair in written])
    seen = frozenset(word for _, text in written for word in WORD.findall(text.lower()))
    tones = {"tone": Tone(), "tone_of_new_words": Tone(without=seen)}
    asks = questions()[:count]
    found: dict[str, Any] = {}
    values: dict[str, dict[str, list[float]]] = {}
    for name, entries in settings.items():
        texts = await asyncio.gather(*(asked.answer(ask, entries, TOKENS) for ask in asks))
        logs = [judge.logprob(ask, text) for ask, text in zip(asks, texts, strict=True)]
        repeats = [repetition(text) for text in texts]
        broken = [
            log < floor.value or repeated > MOST_REPEATED
            for log, repeated in zip(logs, repeats, strict=True)
        ]
        values[name] = {key: [tone(text) for text in texts] for key, tone in tones.items()}
        values[name]["logprob"] = logs
        found[name] = {
            "interventions": list(entries),
            **_estimates(values[name], values["plain"]),
            "positive": share([tone > 0 for tone in values[name]["tone"]]).as_json(),
            "negative": share([tone < 0 for tone in values[name]["tone"]]).as_json(),
            "repetition": mean(repeats).as_json(),
            "broken": share(broken).as_json(),
            "answers": texts,
        }
    return {
        "questions": asks,
        "tokens": TOKENS,
        "logprob_of_hand_written": floor.as_json(),
        "settings": found,
    }


def _estimates(
    values: Mapping[str, Sequence[float]], plain: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Each figure's mean, and its change from plain."""
    return {
        key: {
            "mean": mean(values[key]).as_json(),
            "change": difference(values[key], plain[key]).as_json(),
        }
        for key in values
    }
