"""What grammars cost: their compilation, and a step with and without them, on a CPU.

    python benchmarks/grammars.py [--samples 9] [--steps 30]

A vocabulary of the size of Qwen's, a model of the sizes of a 7B that computes nothing, and texts
that grammars allow. With and without are measured in turns, in one process; times are CPU times of
it, of the compilation wall-clock too, medians over samples. The device's part, masks on a GPU, is
what ``gpu_bench.py --parts masks`` measures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hosting  # noqa: F401  # before report, see there
import torch
from holding.engine import SIZE, decoding
from holding.schemas import SOURCES
from holding.vocabulary import tokens_of, vocabulary
from report import Target, write

from saccade_server.engine.grammars import Grammars
from saccade_server.grammars.compiling import Compiler
from saccade_server.grammars.grammar import Grammar, GrammarKind
from saccade_server.grammars.matcher import Matcher
from saccade_server.grammars.vocabulary import Vocabulary

SIZES = (32000, SIZE)
CROWDS: dict[str, tuple[int, int]] = {
    "1": (1, 1),
    "8": (8, 8),
    "32": (32, 32),
    "1 of 32": (32, 1),
}
"""Requests that decode, and how many of them a grammar holds."""


def milliseconds(work: Callable[[], Any]) -> tuple[float, float]:
    """CPU time of the process, and of the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return (time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3


def compilation(samples: int) -> dict[str, Any]:
    """By vocabulary: its own making, and each grammar cold and again."""
    found: dict[str, Any] = {}
    for size in SIZES:
        tokens = tokens_of(size)
        made, _ = milliseconds(
            lambda tokens=tokens, size=size: Vocabulary.of(tokens, (), (0,), size)
        )
        found[str(size)] = {"vocabulary": {"cpu_ms": round(made, 1)}}
        for name, source in SOURCES.items():
            grammar = Grammar(GrammarKind.GRAMMAR, source())
            runs = [_compiled(vocabulary(size), grammar) for _ in range(samples)]
            found[str(size)][name] = {
                label: round(statistics.median(run[at] for run in runs), 3)
                for at, label in enumerate(("cold_cpu_ms", "cold_ms", "again_cpu_ms", "again_ms"))
            }
    return found


def _compiled(known: Vocabulary, grammar: Grammar) -> tuple[float, float, float, float]:
    compiler = Compiler(known)
    cold = milliseconds(lambda: compiler.start(grammar).result())
    again = milliseconds(lambda: compiler.start(grammar).result())
    compiler.close()
    return *cold, *again


@contextmanager
def clocks(*places: tuple[Any, str]) -> Iterator[dict[str, float]]:
    """CPU seconds that some methods take while this is open, by name."""
    spent = dict.fromkeys((name for _, name in places), 0.0)
    before = [getattr(owner, name) for owner, name in places]

    def timed(name: str, function: Any) -> Any:
        def call(*given: Any) -> Any:
            began = time.process_time()
            try:
                return function(*given)
            finally:
                spent[name] += time.process_time() - began

        return call

    for (owner, name), function in zip(places, before, strict=True):
        setattr(owner, name, timed(name, function))
    try:
        yield spent
    finally:
        for (owner, name), function in zip(places, before, strict=True):
            setattr(owner, name, function)


def steps(samples: int, count: int, ahead: bool) -> dict[str, Any]:
    """By crowd: milliseconds of a step without grammars, with, and in an engine that knows none."""
    found: dict[str, Any] = {}
    for label, (batch, held) in CROWDS.items():
        cores = {
            "unknown": decoding(batch, 0, ahead, known=False),
            "without": decoding(batch, 0, ahead),
            "with": decoding(batch, held, ahead),
        }
        runs: dict[str, list[float]] = {name: [] for name in cores}
        for _ in range(samples):
            for name, core in cores.items():
                cpu, _ = milliseconds(lambda core=core: [core.step() for _ in range(count)])
                runs[name].append(cpu / count)
        medians = {name: statistics.median(values) for name, values in runs.items()}
        found[label] = {
            **{f"{name}_ms": round(value, 4) for name, value in medians.items()},
            "more_ms": round(medians["with"] - medians["without"], 4),
            "unused": round(_paired(runs["without"], runs["unknown"]), 3),
            "noise": round(_spread(runs["without"]), 3),
            **_parts(cores["with"], count),
        }
        assert cores["with"].stats().running == batch
    return found


def _parts(core: Any, count: int) -> dict[str, float]:
    """Of a step: masks filled in, matchers told, and all that runs while the device computes."""
    with clocks((Matcher, "fill"), (Matcher, "accept")) as inner:
        for _ in range(count):
            core.step()
    with clocks((Grammars, "masks")) as outer:
        for _ in range(count):
            core.step()
    spent = {"fill": inner["fill"], "accept": inner["accept"], "overlapped": outer["masks"]}
    return {f"{name}_ms": round(value / count * 1e3, 4) for name, value in spent.items()}


def _paired(some: list[float], others: list[float]) -> float:
    """The median of the ratios of runs that followed each other."""
    return statistics.median(one / other for one, other in zip(some, others, strict=True))


def _spread(runs: list[float]) -> float:
    """Half of the range of the middle half, over the median."""
    first, middle, third = statistics.quantiles(runs, n=4)
    return (third - first) / 2 / middle


def targets(figures: dict[str, Any]) -> list[Target]:
    """Set before anything was measured."""
    ahead, large = figures["one step ahead"], figures["compilation"][str(SIZE)]
    return [
        Target("compile an invoice, cold", large["an invoice"]["cold_ms"], "ms", 50, True),
        Target("a grammar that is known", large["an invoice"]["again_ms"], "ms", 1, True),
        Target("one mask filled", ahead["1"]["fill_ms"], "ms", 0.1, True),
        Target("32 masks filled", ahead["32"]["fill_ms"], "ms", 2, True),
        Target("a step of 32 held requests, more", ahead["32"]["more_ms"], "ms", 4, True),
        Target(
            "a step of 32 of which 1 is held, more", ahead["1 of 32"]["more_ms"], "ms", 0.3, True
        ),
        *(
            Target(
                f"a step of {batch} without grammars, to an engine that knows none",
                ahead[batch]["unused"],
                "x",
                1.03,
                True,
            )
            for batch in ("1", "32")
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {
        "compilation": compilation(options.samples),
        "one step ahead": steps(options.samples, options.steps, ahead=True),
        "as they come": steps(max(options.samples // 3, 2), options.steps, ahead=False),
    }
    print(write("grammars", figures, targets(figures)))


if __name__ == "__main__":
    main()
