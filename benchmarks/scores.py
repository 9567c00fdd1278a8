"""What a score costs: the engine's CPU time for prompts and continuations, read and not.

    python benchmarks/scores.py [--repeats N]

Two random models whose output projection has the part of all weights that it has in LLaVA-1.5 7B
and in Qwen2.5-VL 7B. Each case is a ratio to its base case: the two alternate, the median over
pairs is told, with its quartiles. Time is the process's, so what else runs on the machine matters
little; it is a CPU's, where the sum over a vocabulary weighs otherwise than on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import report
import torch
import transformers as hf
from msgspec.structs import replace

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.models.family import serve
from saccade_server.requests.scores import scoring

PROMPT, CONTINUATION = 512, 32
SIZES = {"as LLaVA-1.5 7B": 1536, "as Qwen2.5-VL 7B": 6272}
"""Vocabularies of a model of 12 layers and 512 dimensions: 2.0 and 8.3 % of its other weights."""


@dataclass(frozen=True)
class Case:
    """What is run, and the case that it is compared with."""

    name: str
    base: str
    make: Callable[[tuple[int, ...], str], GenerateRequest]


def request(tokens: tuple[int, ...], name: str, **sampling: Any) -> GenerateRequest:
    """A request of these tokens; a salt of its own, so that nothing is cached."""
    settings = {"max_tokens": 0, "temperature": 0.0, "ignore_eos": True, **sampling}
    params = SamplingParams(**settings)
    return GenerateRequest(request_id=name, tokens=tokens, sampling=params, cache_salt=name)


def plain(tokens: tuple[int, ...], name: str) -> GenerateRequest:
    return request(tokens, name)


def scored(top: int) -> Callable[[tuple[int, ...], str], GenerateRequest]:
    return lambda tokens, name: scoring(request(tokens, name), 0, tokens[1:], top)


def given(tokens: tuple[int, ...], name: str) -> GenerateRequest:
    """The last tokens as a continuation that is given."""
    prompt, answer = tokens[:-CONTINUATION], tokens[-CONTINUATION:]
    known = replace(request(prompt, name, max_tokens=CONTINUATION - 1), given=answer[:-1])
    return scoring(known, len(prompt) - 1, answer, 0)


def forced(tokens: tuple[int, ...], name: str) -> GenerateRequest:
    """The same, forced token by token."""
    prompt, answer = tokens[:-CONTINUATION], tokens[-CONTINUATION:]
    return request(prompt, name, max_tokens=CONTINUATION, forced=answer, logprobs=1)


CASES = (
    Case("prompt scored", "prompt", scored(0)),
    Case("prompt scored, 20 rivals", "prompt", scored(20)),
    Case("continuation given", "prompt", given),
    Case("continuation forced", "prompt", forced),
)


def engine(vocabulary: int) -> EngineCore:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
    )
    model = serve(hf.LlamaForCausalLM(config).eval())
    settings: dict[str, Any] = {"max_num_seqs": 8, "cache_tokens": 4096}
    return EngineCore(model, EngineConfig(model="random", **settings))


def seconds(core: EngineCore, asked: GenerateRequest) -> float:
    """CPU time of a request that runs alone."""
    start = time.process_time()
    refused = core.submit(asked)
    assert refused is None, refused
    while core.busy:
        core.step()
    return time.process_time() - start


def ratios(core: EngineCore, case: Case, repeats: int, vocabulary: int) -> Iterator[float]:
    rng = np.random.default_rng(1)
    for number in range(repeats + 1):
        tokens = tuple(rng.integers(3, vocabulary, PROMPT).tolist())
        base = seconds(core, plain(tokens, f"{case.name} base {number}"))
        own = seconds(core, case.make(tokens, f"{case.name} {number}"))
        if number:  # the first pair warms up
            yield own / base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, vocabulary in SIZES.items():
        core = engine(vocabulary)
        for case in CASES:
            quartiles = statistics.quantiles(ratios(core, case, repeats, vocabulary), n=4)
            low, middle, high = (round(value, 3) for value in quartiles)
            found.setdefault(name, {})[case.name] = {"ratio": middle, "quartiles": [low, high]}
            print(f"{name:18} {case.name:26} {middle:6.3f}  ({low:.3f} to {high:.3f})")
    figures = {"prompt": PROMPT, "continuation": CONTINUATION, "to_a_plain_prompt": found}
    report.write("scores", {**figures, "repeats": repeats}, [])


if __name__ == "__main__":
    main()
