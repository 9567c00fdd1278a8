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
from saccade_server.evaluation.asking import user_message
from saccade_server.evaluation.images import file_url
from saccade_server.inprocess import open_server
from saccade_server.oneshot import text_of
from saccade_testing.demo_arrays import Answered

QUESTION = "Describe the image."
SYSTEM = "You answer questions about images."
ENTRIES: list[dict[str, Any]] = [
    {"name": "anatomy_of_a_lie", "words": ["red", "blue", "probably"]},
    {"name": "svar", "threshold": 9},
    {"name": "svar", "layers": [5, 0], "reduce": "max", "threshold": 0.01},
    {"name": "waad"},
    {"name": "fai", "near": 2, "far": 5},
    {"name": "sinks", "epsilon": 0.1},
    {"name": "vas"},
    {"name": "vhd", "reduce": "min"},
]
"""All that the one answer of these tests is scored with."""


Served = tuple[str, list[Mapping[str, Any]]]
"""An answer, and what every detector found in it."""


@pytest.fixture(scope="module")
def both() -> tuple[Served, Served]:
    """About a sample, without a system prompt and with one."""

    async def main() -> list[Any]:
        config = engine_config(None, enforce_eager=True, cache_tokens=8192)
        messages = user_message(QUESTION, [file_url(sample_path("absent-1"))])
        body = {"temperature": 0, "max_tokens": 40, "detectors": ENTRIES}
        async with open_server(config, "demo") as client:
            asked = (messages, [{"role": "system", "content": SYSTEM}, *messages])
            posted = [
                await client.post("/v1/chat/completions", json=body | {"messages": each})
                for each in asked
            ]
        return [answer.json() for answer in posted]

    first, second = (
        (text_of(answer), answer["choices"][0]["detectors"]) for answer in asyncio.run(main())
    )
    return first, second


@pytest.fixture(scope="module")
def served(both: tuple[Served, Served]) -> Served:
    return both[0]


@pytest.fixture(scope="module")
def own(served: Any) -> Answered:
    return Answered(sample_path("absent-1"), QUESTION, served[0])


def test_the_anatomy_of_an_answer_is_that_of_transformers(served: Any, own: Answered) -> None:
    found = served[1][0]
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


def test_svar_is_that_of_transformers(served: Any, own: Answered) -> None:
    _, low, high, *_ = served[1]
    start, end = own.image_span
    shares = own.attention[:, :, own.rows, start:end].sum(-1).mean(1)  # [layer, token]
    assert low["tokens"] == pytest.approx(shares[1:4].sum(0).tolist(), abs=1e-4)
    assert low["score"] == pytest.approx(shares[1:4].sum(0).mean(), abs=1e-4)
    assert np.array(low["values"]["ratios"]) == pytest.approx(shares[1:4].T, abs=1e-4)
    assert high["score"] == pytest.approx(shares[[0, 5]].sum(0).max(), abs=1e-4)
    assert (low["flagged"], high["flagged"]) == (True, False)


def test_waad_and_fai_are_those_of_transformers(served: Any, own: Answered) -> None:
    _, _, _, near, far, *_ = served[1]
    first, last = own.prompt, len(own.tokens)
    layers = own.attention[[2, 3, 4]]
    each = range(first, last)  # the answer ended, so every token of it has a row
    reach = np.stack(
        [(layers[:, :, t, : t + 1] * (t - np.arange(t + 1))).sum(-1) for t in each]
    ).mean(0)
    order = np.argsort(reach, axis=None)
    flat, count = layers.reshape(-1, *layers.shape[2:]), int(0.3 * reach.size)
    local, spread = flat[order[:count]].mean(0), flat[order[-count:]].mean(0)
    waad = [sum(local[t, s] * min(t - s, 10) for s in range(t + 1)) for t in each]
    assert near["tokens"] == pytest.approx(waad, abs=1e-3)
    fai = [spread[s + 2 : min(s + 6, last), s].mean() if s + 2 < last else None for s in each]
    assert far["tokens"][-2:] == [None, None]
    assert far["tokens"][:-2] == pytest.approx(fai[:-2], abs=1e-5)


def test_vhd_is_that_of_transformers(served: Any, own: Answered) -> None:
    found = served[1][7]
    apart = np.linalg.norm(own.heads(True) - own.heads(False), axis=-1)  # [token, layer, head]
    largest = np.sort(apart, -1)[..., 3:].sum((1, 2))
    assert found["tokens"] == pytest.approx(largest.tolist(), abs=1e-3)
    assert found["score"] == pytest.approx(largest.min(), abs=1e-3)
    assert np.array(found["values"]["vhd"]) == pytest.approx(apart[0], abs=1e-3)


def test_sinks_are_those_of_transformers(served: Any, own: Answered) -> None:
    values = served[1][5]["values"]
    sums = own.attention[:, :, : own.prompt, : own.prompt].sum(2)
    means = sums / np.arange(own.prompt, 0, -1)
    rates = (means > 0.1).mean((0, 1))
    assert set(np.flatnonzero(rates)) <= set(values["positions"])
    assert values["sink_rate"] == pytest.approx(rates[values["positions"]].tolist())
    start, end = own.image_span
    pairs = zip(values["positions"], values["lifetime"], strict=True)
    found = [position for position, lifetime in pairs if lifetime and start <= position < end]
    assert served[1][5]["score"] == len(found) > 0
    assert values["kind"][values["positions"].index(0)] == "like BOS"


def test_a_prompt_without_a_system_prompt_has_no_vas(served: Any) -> None:
    found = served[1][6]
    assert found["score"] is None
    assert found["reason"] == "nothing is before the first user's turn"


def test_vas_is_that_of_transformers(both: tuple[Served, Served]) -> None:
    """Of the rows of the user's text behind the image; the system prompt ends where USER begins."""
    text, found = both[1]
    own = Answered(sample_path("absent-1"), QUESTION, text, SYSTEM)
    start, end = own.image_span
    system = range(1, own.position("USER"))
    rows = range(end, own.position("ASSISTANT"))
    shares = own.attention[:, :, rows]
    below = np.maximum(shares[..., system].sum(-1), 1e-6)
    ratios = shares[..., start:end].sum(-1) / below  # [layer, head, row]
    assert found[6]["score"] == pytest.approx(ratios.mean(), rel=1e-2)
    assert found[6]["values"]["by_layer"] == pytest.approx(ratios.mean((1, 2)).tolist(), rel=1e-2)


def _tokens(*texts: str) -> list[int]:
    """Those of the texts that are one token."""
    vocabulary = json.loads(
        (sample_path("absent-1").parents[1] / "model/tokenizer.json").read_text()
    )
    known = vocabulary["model"]["vocab"]
    return sorted({known[name] for text in texts if (name := text.replace(" ", "Ġ")) in known})
