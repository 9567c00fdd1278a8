"""Detectors through the server: scores of the demo model's answers are the formulas of
transformers' arrays in float64, and thresholds hold what they say.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from saccade_server.config import engine_config
from saccade_server.demo import sample_path
from saccade_server.inprocess import open_server
from saccade_server.oneshot import ask, text_of
from saccade_testing.demo_arrays import Answered

QUESTION = "Describe the image."
ENTRIES: list[dict[str, Any]] = [
    {"name": "anatomy_of_a_lie", "words": ["red", "blue", "probably"]},
]
"""All that the one answer of these tests is scored with."""


@pytest.fixture(scope="module")
def served() -> tuple[str, Mapping[str, Mapping[str, Any]]]:
    """An answer about a sample, and what every detector found, by name."""

    async def main() -> Any:
        config = engine_config(None, enforce_eager=True, cache_tokens=8192)
        async with open_server(config, "demo") as client:
            sampling = {"temperature": 0, "max_tokens": 40, "detectors": ENTRIES}
            return await ask(client, "demo", QUESTION, [sample_path("absent-1")], [], sampling)

    answer = asyncio.run(main())
    found = answer["choices"][0]["detectors"]
    return text_of(answer), {entry["name"]: entry for entry in found}


@pytest.fixture(scope="module")
def own(served: Any) -> Answered:
    return Answered(sample_path("absent-1"), QUESTION, served[0])


def test_the_anatomy_of_an_answer_is_that_of_transformers(served: Any, own: Answered) -> None:
    found = served[1]["anatomy_of_a_lie"]
    logs, blind, drawn = own.logprobs(True), own.logprobs(False), own.answered
    assert len(drawn) == 14
    each = range(len(drawn))
    conflicts = [
        np.log(np.exp(logs[t, drawn[t]]) + 1e-9) - np.log(np.exp(blind[t, drawn[t]]) + 1e-9)
        for t in each
    ]
    decisions = [-(np.exp(logs[t]) * logs[t]).sum() / np.log(2) for t in each]
    assert found["values"]["conflicts"] == pytest.approx(conflicts, abs=2e-4)
    assert found["values"]["decisions"] == pytest.approx(decisions, abs=1e-4)
    assert found["values"]["conflict"] == pytest.approx(np.mean(conflicts), abs=2e-4)
    words = _tokens("red", " red", "Red", " Red", "blue", " blue", "Blue", " Blue")
    p = np.exp(logs[:, words]).sum(1)
    bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert found["values"]["evidence"] == pytest.approx(bits.mean(), abs=1e-5)
    assert max(bits) > 1e-3


def _tokens(*texts: str) -> list[int]:
    """Those of the texts that are one token."""
    vocabulary = json.loads(
        (sample_path("absent-1").parents[1] / "model/tokenizer.json").read_text()
    )
    known = vocabulary["model"]["vocab"]
    return sorted({known[name] for text in texts if (name := text.replace(" ", "Ġ")) in known})
