"""Time per token and for a prompt under each setting, each time beside none on the same engine."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from effects.passes import counting, per_request
from saccade_server.demo.questions import Kind
from saccade_server.demo.splits import Example, Split, examples
from saccade_server.evaluation.asking import user_message
from saccade_server.evaluation.images import data_url
from saccade_server.evaluation.settings import NONE, Setting

CONCURRENCY = 16
COUNTED_REQUESTS = 4


@dataclass
class Times:
    """Seconds, one entry a round: of a setting and of none right before it."""

    own: dict[str, list[float]] = field(default_factory=dict)
    plain: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, own: float, plain: float) -> None:
        self.own.setdefault(what, []).append(own)
        self.plain.setdefault(what, []).append(plain)

    def as_json(self) -> dict[str, Any]:
        return {
            what: {
                "ms": round(1000 * statistics.median(self.own[what]), 3),
                "none_ms": round(1000 * statistics.median(self.plain[what]), 3),
                "ratio": round(_median_ratio(self.own[what], self.plain[what]), 3),
            }
            for what in self.own
        }


class Bench:
    """Sends requests that are answered from no cache: each has an image of its own."""

    def __init__(self, client: Any, model: str, tokens: int) -> None:
        self._client = client
        self._model = model
        self._examples = _fresh()
        self.tokens = tokens

    async def answer(self, setting: Setting, tokens: int) -> dict[str, Any]:
        """One request."""
        return await self._send(setting, next(self._examples), tokens)

    async def prefill(self, setting: Setting) -> float:
        """Seconds to the first token, median of four prompts one after another."""
        times = []
        for _ in range(4):
            began = time.perf_counter()
            await self.answer(setting, 1)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    async def alone(self, setting: Setting) -> tuple[float, float]:
        """Seconds of a prompt, and of a token behind it, one request at a time."""
        prompt = await self.prefill(setting)
        began = time.perf_counter()
        for _ in range(2):
            await self.answer(setting, self.tokens)
        whole = (time.perf_counter() - began) / 2
        return prompt, (whole - prompt) / (self.tokens - 1)

    async def together(self, setting: Setting) -> float:
        """Seconds a token with many requests at once, their prompts included."""
        asked = [next(self._examples) for _ in range(CONCURRENCY)]
        began = time.perf_counter()
        await asyncio.gather(*(self._send(setting, one, self.tokens) for one in asked))
        return (time.perf_counter() - began) / (CONCURRENCY * self.tokens)

    async def _send(self, setting: Setting, example: Example, tokens: int) -> dict[str, Any]:
        body = {
            "model": self._model,
            "messages": user_message(example.question, [data_url(example.image)]),
            "interventions": setting.entries(example.question),
            "temperature": 0,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        response = await self._client.post("/v1/chat/completions", json=body)
        answer: dict[str, Any] = response.json()
        assert response.status_code == 200, answer
        assert answer["usage"]["completion_tokens"] == tokens
        return answer


async def measure(
    client: Any, model: str, core: Any, settings: Sequence[Setting], rounds: int, tokens: int
) -> dict[str, Any]:
    """Figures by setting; one that the server refuses says so instead."""
    bench = Bench(client, model, tokens)
    none = Setting(NONE)
    found: dict[str, Any] = {NONE: {"passes": await _passes(bench, core, none)}}
    times: dict[str, Times] = {}
    for setting in settings:
        try:
            found[setting.name] = {"passes": await _passes(bench, core, setting)}
            times[setting.name] = Times()
        except AssertionError as refused:
            found[setting.name] = {"refused": str(refused)[:400]}
    for index in range(rounds):
        for setting in settings:
            if setting.name in times:
                await _round(bench, none, setting, times[setting.name])
        print(f"speed: round {index + 1} of {rounds}", flush=True)
    for name, noted in times.items():
        found[name] |= noted.as_json()
    return found


async def _round(bench: Bench, none: Setting, setting: Setting, times: Times) -> None:
    plain, own = await bench.alone(none), await bench.alone(setting)
    times.note("prompt", own[0], plain[0])
    times.note("token_alone", own[1], plain[1])
    together = await bench.together(none)
    times.note(f"token_at_{CONCURRENCY}", await bench.together(setting), together)


async def _passes(bench: Bench, core: Any, setting: Setting) -> dict[str, Any]:
    """Count a few requests; they also warm the setting up."""
    await bench.answer(setting, 2)
    prompt = 0
    counters: dict[str, int] = {}
    with counting(core) as work:
        for _ in range(COUNTED_REQUESTS):
            answer = await bench.answer(setting, bench.tokens)
            usage = answer["usage"]
            prompt += usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
            for entry in answer.get("interventions_applied") or ():
                for name, value in entry.get("counters", {}).items():
                    counters[name] = counters.get(name, 0) + value
    layers = core.info.layers
    counted = per_request(work, COUNTED_REQUESTS, bench.tokens, prompt, layers)
    each = {name: round(value / COUNTED_REQUESTS, 2) for name, value in counters.items()}
    return {**counted, "counters_per_request": each}


def _fresh() -> Iterator[Example]:
    """Scenes that nobody else asks about."""
    seed = 500_000
    while True:
        yield from examples(Split.ORDINARY, Kind.DESCRIBE, 64, seed=seed)
        seed += 1


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
