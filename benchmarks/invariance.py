"""What ``--batch-invariant`` costs: the engine's CPU time with it and without, in turns.

    python benchmarks/invariance.py [--repeats N]

Random models of 8 layers, with heads of their own keys and in groups of four, in both types. Two
engines share the weights and differ in the mode alone; they run the same requests in turns, and the
median of the ratios over the pairs is told, with its quartiles. Time is the process's, on one
thread, so what else runs on the machine matters little. Sampled answers, plain or under a mass edit
in every layer. How many of eight are others beside neighbours than alone is told too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import report
import torch
import transformers as hf

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_kernels.controls import ControlShape
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.models.family import serve

LAYERS, HEADS, WIDTH, VOCABULARY = 8, 8, 512, 6272
KEY_HEADS = (8, 2)
TYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """So many requests at once, of these lengths."""

    name: str
    requests: int
    prompt: int
    answer: int
    edited: bool = False


CASES = (
    Case("prompt of 512", 1, 512, 1),
    Case("prompt of 512, edited", 1, 512, 1, edited=True),
    Case("answer, alone", 1, 64, 24),
    Case("answer, alone, edited", 1, 64, 24, edited=True),
    Case("answers, 8 at once", 8, 64, 24),
    Case("answers, 8 at once, edited", 8, 64, 24, edited=True),
    Case("answers, 8 at once behind 512", 8, 512, 24),
)


def engines(dtype: str, key_heads: int) -> dict[bool, EngineCore]:
    """By whether they are batch-invariant."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=1408,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=key_heads,
        max_position_embeddings=1024,
    )
    model = serve(hf.LlamaForCausalLM(config).eval().to(getattr(torch, dtype)))
    limits: dict[str, Any] = {"max_num_seqs": 8, "cache_tokens": 8192, "prefix_caching": False}
    return {
        invariant: EngineCore(
            model, EngineConfig(model="random", batch_invariant=invariant, **limits)
        )
        for invariant in (False, True)
    }


def plan(length: int) -> Plan:
    """A third of the prompt gets half of the mass that the rest has, in every layer and head."""
    builder = PlanBuilder(ControlShape(LAYERS, HEADS, WIDTH // HEADS), length, length // 2)
    seen = builder.tag([(length // 3, 2 * length // 3)])
    sites = tuple((layer, tuple(range(HEADS))) for layer in range(LAYERS))
    builder.mass(sites, [(0, 0, -0.5), (seen, 0, 0.5)], parse_rows("prompt+generated"), [])
    return builder.build()


def requests(case: Case, number: int) -> list[GenerateRequest]:
    rng = np.random.default_rng(number)
    return [
        GenerateRequest(
            request_id=f"{case.name} {number} {at}",
            tokens=tuple(rng.integers(3, VOCABULARY, case.prompt).tolist()),
            plan=plan(case.prompt) if case.edited else None,
            sampling=SamplingParams(
                max_tokens=case.answer, temperature=1.0, seed=at, ignore_eos=True
            ),
        )
        for at in range(case.requests)
    ]


def run(core: EngineCore, asked: list[GenerateRequest]) -> tuple[float, dict[str, list[int]]]:
    """CPU seconds of requests that come at once, and their tokens."""
    tokens: dict[str, list[int]] = {one.request_id: [] for one in asked}
    start = time.process_time()
    for one in asked:
        refused = core.submit(one)
        assert refused is None, refused
    while core.busy:
        for output in core.step():
            tokens[output.request_id] += output.tokens
    return time.process_time() - start, tokens


def pairs(cores: dict[bool, EngineCore], case: Case, repeats: int) -> Iterator[tuple[float, float]]:
    """CPU seconds without the mode and with it."""
    for number in range(repeats + 1):
        found = {}
        for invariant in (False, True) if number % 2 else (True, False):
            found[invariant] = run(cores[invariant], requests(case, number))[0]
        if number:  # the first pair warms up
            yield found[False], found[True]


def figures(cores: dict[bool, EngineCore], case: Case, repeats: int) -> dict[str, Any]:
    known = list(pairs(cores, case, repeats))
    low, middle, high = statistics.quantiles([own / base for base, own in known], n=4)
    made = case.requests * (case.answer if case.answer > 1 else case.prompt)
    usual, invariant = (made / statistics.median(values) for values in zip(*known, strict=True))
    return {
        "ratio": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "tokens_per_cpu_second": {"usual": round(usual, 1), "invariant": round(invariant, 1)},
    }


def bits(cores: dict[bool, EngineCore]) -> dict[str, int]:
    """How many of eight sampled answers are others beside neighbours than alone, by mode."""
    case = Case("neighbours", 8, 150, 32)
    found = {}
    for invariant, core in cores.items():
        asked = requests(case, 0)
        together = run(core, asked)[1]
        alone = [run(core, [one])[1][one.request_id] for one in asked]
        pairs = zip(asked, alone, strict=True)
        differ = sum(together[one.request_id] != tokens for one, tokens in pairs)
        found["invariant" if invariant else "usual"] = differ
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    costs: dict[str, Any] = {}
    differing: dict[str, Any] = {}
    for dtype in TYPES:
        for key_heads in KEY_HEADS:
            name = f"{dtype}, {HEADS}/{key_heads} heads"
            cores = engines(dtype, key_heads)
            for case in CASES:
                found = figures(cores, case, repeats)
                costs.setdefault(name, {})[case.name] = found
                print(f"{name:24} {case.name:30} {found['ratio']:6.3f}  {found['quartiles']}")
            differing[name] = bits(cores)
            print(f"{name:24} answers that differ beside neighbours: {differing[name]}")
    shape = {"layers": LAYERS, "hidden_size": WIDTH, "vocabulary": VOCABULARY}
    found = {"model": shape, "cost": costs, "answers_of_8_that_differ": differing}
    report.write("invariance", {**found, "repeats": repeats}, [])


if __name__ == "__main__":
    main()
