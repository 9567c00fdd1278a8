"""What plain requests pay for a neighbour that rejects candidates by saliency, on the demo model.

One engine in this process, no HTTP. Plain requests decode beside one more sequence that is plain,
rejects by saliency, or is not there; rounds interleave the three. A step of a rejecting sequence
has one pass through the upper layers with gradient behind it, and the plain requests of that step
wait for it. How much of the wait is that pass itself is measured too, by timing it alone: what is
left would be what the scheduling costs.

    python benchmarks/acceptance.py [--rounds 7] [--neighbours 1 4 8 16] [--tokens 64]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from report import Target, write

from saccade_interventions.registry import Registry
from saccade_interventions.rules import SaliencyRule
from saccade_server.demo import model_path
from saccade_server.demo.questions import Kind
from saccade_server.demo.splits import Split, examples
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.load import load_core
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.models.prompt import Message, PromptProcessor
from saccade_server.requests.facts import facts_of
from saccade_server.requests.prepared import prepare

QUESTION = "Describe the image."
SETTINGS = ("alone", "plain", "sgrs")


class Bench:
    """An engine, and requests for it."""

    def __init__(self, tokens: int) -> None:
        path = str(model_path())
        self.core: EngineCore = load_core(EngineConfig(model=path, max_num_seqs=32))
        self.prompts = PromptProcessor.load(path)
        self.tokens = tokens
        self.facts = facts_of(self.core.info)
        self.methods = Registry.discover().parse([{"method": "sgrs"}])
        self.passes: list[float] = []
        judge = self.core._runner.rules[SaliencyRule]
        judge.launched = self._timed(judge.launched)

    def request(self, name: str, picture: Any, rejects: bool) -> GenerateRequest:
        """One that generates exactly so many tokens."""
        prompt = self.prompts.chat([Message("user", (picture, QUESTION))])
        prepared = prepare(prompt, self.methods if rejects else (), self.facts)
        sampling = SamplingParams(max_tokens=self.tokens, temperature=1.0, ignore_eos=True)
        return prepared.request(name, sampling)

    def run(self, setting: str, pictures: list[Any]) -> tuple[float, float, dict[str, int]]:
        """Milliseconds a decode step, those of the passes in it, and the neighbour's counters."""
        extra = () if setting == "alone" else pictures[:1]
        for index, picture in enumerate(pictures[1:]):
            self.core.submit(self.request(f"plain-{index}", picture, False))
        for picture in extra:
            self.core.submit(self.request("neighbour", picture, setting == "sgrs"))
        for _ in range(2):  # prompts, and a first decode
            self.core.step()
        self.passes.clear()
        counters: dict[str, int] = {}
        steps, began = 0, time.perf_counter()
        while self.core.busy:
            steps += 1
            for output in self.core.step():
                found = output.receipt.counters if output.receipt else ()
                counters |= {counter.name: counter.value for counter in found}
        elapsed = time.perf_counter() - began
        return 1e3 * elapsed / steps, 1e3 * sum(self.passes) / steps, counters

    def _timed(self, launch: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            with self._clock():
                return launch(*arguments)

        return timed

    @contextmanager
    def _clock(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.passes.append(time.perf_counter() - began)


def measure(options: argparse.Namespace, count: int, bench: Bench) -> dict[str, Any]:
    """Medians over rounds, with ``count`` plain requests; ratios are taken within a round."""
    rounds: dict[str, list[tuple[float, float, dict[str, int]]]] = {s: [] for s in SETTINGS}
    for index in range(options.rounds + 1):
        for place, setting in enumerate(SETTINGS):
            seed = 10_000 * count + 10 * index + place
            chosen = examples(Split.ORDINARY, Kind.DESCRIBE, count + 1, seed=seed)
            found = bench.run(setting, [example.image for example in chosen])
            if index:  # the first round warms everything up
                rounds[setting].append(found)
    step = {s: statistics.median(ms for ms, _, _ in rounds[s]) for s in SETTINGS}
    work = statistics.median(ms for _, ms, _ in rounds["sgrs"])
    pairs = list(zip(rounds["sgrs"], rounds["plain"], strict=True))
    return {
        "plain_requests": count,
        "step_ms": step,
        "pass_ms": work,
        "slowdown": statistics.median(a / b for (a, _, _), (b, _, _) in pairs),
        "beyond_the_pass": statistics.median((a - w) / b for (a, w, _), (b, _, _) in pairs),
        "counters": [counters for _, _, counters in rounds["sgrs"]],
        "rounds": {s: [round(ms, 3) for ms, _, _ in rounds[s]] for s in SETTINGS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    bench = Bench(options.tokens)
    found = [measure(options, count, bench) for count in options.neighbours]
    targets = []
    for figures in found:
        count = figures["plain_requests"]
        print(f"{count} plain: {figures['step_ms']}, pass {figures['pass_ms']:.2f} ms")
        name = f"step of {count} plain requests and one that rejects, without its own pass"
        value = figures["beyond_the_pass"]
        targets.append(Target(f"{name}, against none that rejects", value, "x", 1.1, at_most=True))
    threads = torch.get_num_threads()
    write(
        "acceptance", {"model": "embedded demo model", "threads": threads, "found": found}, targets
    )


if __name__ == "__main__":
    main()
