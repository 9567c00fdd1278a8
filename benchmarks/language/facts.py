"""Short questions with known answers: what is said, and whether the right text is likeliest."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from language.asked import Asked, Entries
from language.paired import difference, mean, share

FILE = Path(__file__).resolve().parent / "facts.toml"
TOKENS = 24


@dataclass(frozen=True)
class Fact:
    """A question; ``stem`` begins an answer, the first of ``right`` or one of ``wrong`` ends it."""

    question: str
    stem: str
    right: list[str]
    wrong: list[str]

    def is_right(self, answer: str) -> bool:
        """True if a right text stands in the answer, whole, in any case."""
        return any(
            re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer, re.IGNORECASE)
            for text in self.right
        )


def facts() -> list[Fact]:
    return [Fact(**entry) for entry in tomllib.loads(FILE.read_text())["facts"]]


async def measure(asked: Asked, settings: Mapping[str, tuple[Entries, Entries]]) -> dict[str, Any]:
    """Of each setting the first entries answer freely, the second weigh given answers.

    ``plain`` is what the others are compared with.
    """
    asks = facts()
    found: dict[str, Any] = {}
    values: dict[str, dict[str, list[float]]] = {}
    for name, (free, weighing) in settings.items():
        texts = await asyncio.gather(*(asked.answer(fact.question, free, TOKENS) for fact in asks))
        margins = await asyncio.gather(*(_margin(asked, fact, weighing) for fact in asks))
        values[name] = {
            "right": [float(fact.is_right(text)) for fact, text in zip(asks, texts, strict=True)],
            "preferred": [float(margin > 0) for margin in margins],
            "margin": list(margins),
        }
        found[name] = {
            "interventions": list(free),
            "interventions_weighing": list(weighing),
            **{
                key: {
                    "mean": (mean(of) if key == "margin" else share(list(map(bool, of)))).as_json(),
                    "change": difference(of, values["plain"][key]).as_json(),
                }
                for key, of in values[name].items()
            },
            "answers": texts,
            "margins": [round(margin, 4) for margin in margins],
        }
    return {"questions": [fact.question for fact in asks], "tokens": TOKENS, "settings": found}


async def _margin(asked: Asked, fact: Fact, entries: Entries) -> float:
    """log p of the right answer minus that of the likeliest wrong one, in nats."""
    chat = [
        {"role": "user", "content": fact.question},
        {"role": "assistant", "content": fact.stem},
    ]
    prompt = await asked.tokens(messages=chat, continue_final_message=True)
    right, *wrong = await asyncio.gather(
        *(_logprob(asked, prompt, text, entries) for text in (fact.right[0], *fact.wrong))
    )
    return right - max(wrong)


async def _logprob(asked: Asked, prompt: list[int], text: str, entries: Entries) -> float:
    answer = await asked.tokens(prompt=f" {text}", add_special_tokens=False)
    return await asked.logprob(prompt, answer, entries)
