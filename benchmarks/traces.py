"""What a trace costs its own request, and what a plain one beside it: the demo model, no HTTP.

Steps are padded, as on a GPU, so a trace is read behind them. For each kind of trace there are four
runs that differ in nothing else, and rounds interleave them:

    alone     one request without a trace         own = traced / alone
    traced    the same request with the trace     its work = traced - alone
    beside    plain requests and one more         wait = with / beside
    with      the same, the one more traced       neighbour = (with - its work) / beside

Who shares a step with a trace waits for its work: ``wait``. What it costs them beyond that work is
``neighbour``, which is 1 if it costs them nothing.

Figures are processor time of the process, which other programs do not change, per decode step; of
the prompt's step apart, where rows of it are read. Ratios are medians over rounds.

    python benchmarks/traces.py [--rounds 7] [--neighbours 4] [--tokens 48] [--device cuda]

On a GPU the clock is the wall's, and the device has finished before it is read: not measured. On
a CPU glibc is told to keep what is freed: else it gives memory back to the system in every step, or
in none, and which of the two depends on a few kilobytes more.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from msgspec.structs import replace
from report import Target, write

from saccade_server.demo import model_path
from saccade_server.demo.questions import Kind
from saccade_server.demo.splits import Split, examples
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.load import load_core
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.traces.data import Trace
from saccade_server.models.prompt import Message, PromptProcessor
from saccade_server.requests.facts import facts_of
from saccade_server.requests.prepared import described, prepare
from saccade_server.requests.traces.options import TraceOptions
from saccade_server.requests.traces.resolve import resolve
from saccade_server.requests.traces.scope import Scope

QUESTION = "Describe the image."
KINDS: dict[str, dict[str, Any]] = {
    "masses of the answer": {"masses": True},
    "heat maps of the answer": {"heatmaps": True},
    "masses of all rows, heads apart": {"masses": {"rows": "all", "reduce": []}},
    "columns over the prompt": {"columns": {"rows": "prompt"}},
    "sinks": {"sinks": True},
    "entropy of all rows": {"entropy": {"rows": "all"}},
    "logit lens of the answer": {"logit_lens": True},
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt, in malloc.h."""
RUNS = ("alone", "traced", "beside", "with")


@dataclass(frozen=True)
class Cost:
    """Milliseconds of a run: the first step, which has the prompts, and a decode step."""

    prompt: float
    decode: float


class Bench:
    """An engine, and requests for it."""

    def __init__(self, tokens: int, device: str) -> None:
        path = str(model_path())
        config = EngineConfig(
            model=path, device=device, max_num_seqs=16, padded_decode=True, prefix_caching=False
        )
        self.core: EngineCore = load_core(config)
        self.prompts = PromptProcessor.load(path)
        self.tokens = tokens
        self.facts = facts_of(self.core.info)
        self.is_gpu = device != "cpu"

    def requests(self, count: int, seed: int) -> list[GenerateRequest]:
        """Of different pictures, all of one length."""
        chosen = examples(Split.ORDINARY, Kind.DESCRIBE, count, seed=seed)
        sampling = SamplingParams(max_tokens=self.tokens, temperature=0.0, ignore_eos=True)
        rendered = [self.prompts.chat([Message("user", (e.image, QUESTION))]) for e in chosen]
        made = (prepare(prompt, (), self.facts) for prompt in rendered)
        return [one.request(str(n), sampling) for n, one in enumerate(made)]

    def trace(self, options: dict[str, Any]) -> Trace:
        """What the options mean for any of these prompts."""
        (example,) = examples(Split.ORDINARY, Kind.DESCRIBE, 1, seed=0)
        prompt = described(self.prompts.chat([Message("user", (example.image, QUESTION))]))
        scope = Scope(self.facts, prompt, self.tokens)
        return resolve(TraceOptions.model_validate(options), scope).trace

    def run(self, requests: list[GenerateRequest]) -> Cost:
        """All at once, to their ends."""
        for request in requests:
            assert self.core.submit(request) is None
        prompt = self._timed(1)
        steps = self.core.steps
        decode = self._timed(None)
        return Cost(prompt, decode / (self.core.steps - steps))

    def _timed(self, steps: int | None) -> float:
        clock = time.perf_counter if self.is_gpu else time.process_time
        began = clock()
        while self.core.busy and steps != 0:
            self.core.step()
            steps = None if steps is None else steps - 1
        if self.is_gpu:
            torch.cuda.synchronize()
        return 1e3 * (clock() - began)


def measure(options: argparse.Namespace, kind: str, bench: Bench) -> dict[str, Any]:
    """Medians over rounds, and ratios that are taken within a round."""
    trace = bench.trace(KINDS[kind])
    rounds: list[dict[str, Cost]] = []
    for number in range(options.rounds + 1):
        found: dict[str, Cost] = {}
        for run in RUNS if number % 2 else reversed(RUNS):
            count = 1 if run in ("alone", "traced") else options.neighbours + 1
            requests = bench.requests(count, seed=100 * number)
            if run in ("traced", "with"):
                requests[-1] = replace(requests[-1], trace=trace)
            found[run] = bench.run(requests)
        if number:  # the first round warms everything up
            rounds.append(found)
    return {"kind": kind} | {
        part: {
            "ms": {run: statistics.median(getattr(r[run], part) for r in rounds) for run in RUNS},
            "own": _spread([_own(r, part) for r in rounds]),
            "wait": _spread([_wait(r, part) for r in rounds]),
            "neighbour": _spread([_neighbour(r, part) for r in rounds]),
        }
        for part in ("prompt", "decode")
    }


def _own(found: dict[str, Cost], part: str) -> float:
    cost = {run: getattr(found[run], part) for run in RUNS}
    return float(cost["traced"] / cost["alone"])


def _wait(found: dict[str, Cost], part: str) -> float:
    return float(getattr(found["with"], part) / getattr(found["beside"], part))


def _neighbour(found: dict[str, Cost], part: str) -> float:
    cost = {run: getattr(found[run], part) for run in RUNS}
    return float((cost["with"] - cost["traced"] + cost["alone"]) / cost["beside"])


def _spread(ratios: list[float]) -> dict[str, float]:
    """Median, and the quartiles between which half of the rounds are."""
    low, _, high = statistics.quantiles(ratios, n=4)
    return {"median": statistics.median(ratios), "low": low, "high": high}


def keep_memory() -> None:
    """Have glibc neither trim its heap nor map single arrays."""
    libc = ctypes.CDLL("libc.so.6")
    assert libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1
    assert libc.mallopt(M_MMAP_THRESHOLD, 2**25) == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--neighbours", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    bench = Bench(options.tokens, options.device)
    found = [measure(options, kind, bench) for kind in KINDS]
    targets = []
    bound = partial(Target, unit="x", target=1.1, at_most=True)
    for figures in found:
        decode, prompt = figures["decode"], figures["prompt"]
        print(
            f"{figures['kind']}: decode own {decode['own']['median']:.2f}, "
            f"wait {decode['wait']['median']:.2f}, neighbour {decode['neighbour']['median']:.3f}; "
            f"prompt own {prompt['own']['median']:.2f}, wait {prompt['wait']['median']:.2f}, "
            f"neighbour {prompt['neighbour']['median']:.3f}"
        )
        name = f"step of {options.neighbours} plain requests beside {figures['kind']}"
        value = decode["neighbour"]["median"]
        targets.append(bound(f"{name}, without the trace's own work, against none", value))
    about = {"model": "embedded demo model", "neighbours": options.neighbours, "found": found}
    write("traces", about, targets)


if __name__ == "__main__":
    main()
