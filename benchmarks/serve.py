"""Saccade over HTTP against transformers' ``generate``, one after another, on the demo model.

Every request has an image of its own and generates the same number of tokens, so nothing is
answered from a cache. Rounds interleave all settings, so that a machine whose speed drifts drifts
for all of them; figures are medians over rounds, ratios are taken within a round.

    python benchmarks/serve.py [--rounds 5] [--requests 32] [--tokens 48]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import torch
from chat import body
from report import Target, write
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging as transformers_logging

from saccade_server.demo import model_path
from saccade_server.demo.questions import Kind
from saccade_server.demo.splits import Split, examples
from saccade_server.models.prompt import Message, PromptProcessor

PROMPT = "Describe the image."
CONCURRENCY = (1, 8, 16, 32)
VAR = [{"method": "var"}]


def images(count: int, seed: int) -> list[Any]:
    """Images that no other call with another seed returns."""
    return [e.image for e in examples(Split.ORDINARY, Kind.DESCRIBE, count, seed=seed)]


class Generate:
    """transformers' own generation, greedy, one image after another."""

    def __init__(self, tokens: int) -> None:
        transformers_logging.disable_progress_bar()
        self.model = AutoModelForImageTextToText.from_pretrained(model_path()).eval().float()
        self.prompts = PromptProcessor.load(str(model_path()))
        self.tokenizer = AutoTokenizer.from_pretrained(model_path())
        self.tokens = tokens

    @torch.inference_mode()
    def answer(self, image: Any) -> str:
        prompt = self.prompts.chat([Message("user", (image, PROMPT))])
        ids = torch.tensor([prompt.tokens])
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.from_numpy(prompt.images[0].pixels)[None],
            do_sample=False,
            max_new_tokens=self.tokens,
            min_new_tokens=self.tokens,
        )
        return str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))

    def rate(self, pictures: list[Any]) -> float:
        """Tokens per second."""
        began = time.perf_counter()
        for picture in pictures:
            self.answer(picture)
        return len(pictures) * self.tokens / (time.perf_counter() - began)


class Server:
    """A Saccade server's HTTP API."""

    def __init__(self, url: str, tokens: int) -> None:
        self.url = url
        self.tokens = tokens

    async def rate(
        self, pictures: list[Any], concurrency: int, interventions: list[Any]
    ) -> tuple[float, list[float]]:
        """Tokens per second, and each request's latency in seconds."""
        fixed = {"max_tokens": self.tokens, "ignore_eos": True}
        bodies = [body(picture, PROMPT, interventions, **fixed) for picture in pictures]
        gate = asyncio.Semaphore(concurrency)
        latencies: list[float] = []
        async with httpx2.AsyncClient(base_url=self.url, timeout=600) as client:

            async def one(sent: dict[str, Any]) -> None:
                async with gate:
                    began = time.perf_counter()
                    response = await client.post("/v1/chat/completions", json=sent)
                    latencies.append(time.perf_counter() - began)
                answer = response.json()
                assert response.status_code == 200, answer
                assert answer["usage"]["completion_tokens"] == self.tokens
                if interventions:
                    assert answer["interventions_applied"][0]["status"] == "applied", answer

            began = time.perf_counter()
            await asyncio.gather(*(one(sent) for sent in bodies))
            elapsed = time.perf_counter() - began
        return len(pictures) * self.tokens / elapsed, latencies


@contextmanager
def running_server(arguments: list[str]) -> Iterator[str]:
    """Start ``saccade serve`` on a free port; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from saccade_server.cli import main; main()", "serve"]
    options = ["--port", str(port), "--no-access-log", "--log-level", "warning", *arguments]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            try:
                if httpx2.get(url + "/ready").status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


async def measure(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Tokens per second of every setting, one entry a round; median latencies in seconds."""
    rates: dict[str, list[float]] = {}
    latencies: dict[str, list[float]] = {}
    peer = Generate(options.tokens)
    with running_server(options.server) as url:
        server = Server(url, options.tokens)
        seed = 1000
        for round_index in range(options.rounds + 1):
            found: dict[str, float] = {}
            for threads in options.generate_threads:
                torch.set_num_threads(threads)
                seed += 1
                found[f"generate, {threads} threads"] = peer.rate(images(8, seed))
            for concurrency in CONCURRENCY:
                for name, interventions in (("plain", []), ("var", VAR)):
                    seed += 1
                    count = options.requests if concurrency > 1 else 8
                    label = f"{name}, concurrency {concurrency}"
                    rate, waits = await server.rate(images(count, seed), concurrency, interventions)
                    found[label] = rate
                    if round_index:
                        latencies.setdefault(label, []).extend(waits)
            print(f"round {round_index}", {k: round(v, 1) for k, v in found.items()}, flush=True)
            if round_index:  # the first round warms everything up
                for label, rate in found.items():
                    rates.setdefault(label, []).append(rate)
    return rates, {label: statistics.median(waits) for label, waits in latencies.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=32, help="a setting, beyond concurrency 1")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--generate-threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="serve's options")
    options = parser.parse_args()
    rates, latencies = asyncio.run(measure(options))
    # The peer is generate at whichever number of threads suits it best.
    names = [name for name in rates if name.startswith("generate")]
    best = max(names, key=lambda name: statistics.median(rates[name]))
    peer = rates[best]
    targets = [
        Target(
            "time per token at concurrency 1, against generate",
            median_ratio(peer, rates["plain, concurrency 1"]),
            "x",
            1.0,
            at_most=True,
        )
    ]
    for concurrency, least in ((16, 5.0), (32, 7.0)):
        rate = rates[f"plain, concurrency {concurrency}"]
        name = f"throughput at concurrency {concurrency}, against generate"
        targets.append(Target(name, median_ratio(rate, peer), "x", least, at_most=False))
    for concurrency in CONCURRENCY:
        plain, var = (rates[f"{name}, concurrency {concurrency}"] for name in ("plain", "var"))
        name = f"time with VAR on every request, against none, concurrency {concurrency}"
        targets.append(Target(name, median_ratio(plain, var), "x", 1.10, at_most=True))
    figures = {
        "model": "embedded demo model",
        "tokens_per_request": options.tokens,
        "peer": best,
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "median_latency_s": latencies,
        "rounds": rates,
    }
    for target in targets:
        verdict = "met" if target.met else "MISSED"
        print(f"{target.name:64} {target.value:6.2f}{target.unit} {verdict}")
    write("serve", figures, targets)


if __name__ == "__main__":
    main()
