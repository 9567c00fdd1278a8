"""What a token and a request cost between the engine and a client's socket, without any model.

A stub gives every sequence a token each step; what carries it to the client is the server's own
code: messages between the processes, text, JSON, events, the event loop, HTTP. Measured is the CPU
time of the server's process and of the engine's, a token and a request apart: the same requests
with one token and with many. Steps are paced then, so that every token takes its own way; the rate
is measured once more without a pace, everything on the cores of one machine, the clients too.

    python benchmarks/frontend.py [--rounds 3] [--only "256 streams"] [--against CHECKOUT]

Beside this server runs one in which nobody looks at requests, so that nothing is counted of them:
what differs is what metrics cost. Another checkout's may run, too. They are processes of their own,
in turns. What else a machine does only adds to the CPU time of a process, so of all rounds the
least seconds count. What counting costs a step of the engine is measured in front/steps.py, and a
scrape of /metrics here, after all these requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import front.steps
import numpy as np
from chat import body as chat_body
from front.clients import ask_all, request
from PIL import Image
from report import HERE, Target, write

ROOTS = ("kernels", "interventions", "server")
STREAMS = (1, 4, 16, 64, 256)
REQUESTS = {1: 24, 4: 24, 16: 32, 64: 128, 256: 256}
PACE_US = 600
"""Of a step for each of its streams: longer than any code here needs for a token."""
QUESTION = "Describe the image."
WHOLE = "chat, 256 streams"
SCRAPES = 40


@dataclass(frozen=True)
class Case:
    """One kind of request, so many at once."""

    name: str
    streams: int
    path: str = "/v1/chat/completions"
    stream: bool = True
    image: bool = False

    def asked(self, tokens: int, pace: int) -> list[bytes]:
        """The requests of one measurement; each image occurs once."""
        sent: dict[str, Any] = {"stream": self.stream, "max_tokens": tokens, "seed": pace}
        made = []
        for index in range(REQUESTS[self.streams]):
            if self.path.endswith("chat/completions"):
                message = {"role": "user", "content": QUESTION}
                whole = chat_body(picture(index), QUESTION, []) if self.image else None
                body = whole or {"messages": [message], "temperature": 0}
            else:
                body = {"prompt": QUESTION, "temperature": 0}
            made.append(request(self.path, {**body, "model": "stub", **sent}))
        return made


def cases() -> list[Case]:
    return [
        *(Case(f"chat, {n} streams", n) for n in STREAMS),
        *(Case(f"chat, not streamed, {n} requests", n, stream=False) for n in STREAMS),
        Case("completions, 16 streams", 16, "/v1/completions"),
        Case("completions, not streamed, 16 requests", 16, "/v1/completions", stream=False),
        Case("chat with an image, 16 streams", 16, image=True),
        Case("chat with an image, not streamed, 16 requests", 16, stream=False, image=True),
    ]


def picture(index: int) -> Image.Image:
    """A small image that no other number gives."""
    values = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(values).resize((64, 64))


class Side:
    """A running server of one tree."""

    def __init__(self, tree: Path, **variables: str) -> None:
        roots = [str(tree / root) for root in ROOTS] + [str(HERE)]
        more = {"PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1", **variables}
        environment = {**os.environ, **more}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "front.side"],
            env=environment,
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        about = json.loads(self._line())
        self.port = about["port"]
        self._pids = {"api": about["api"], "engine": about["engine"]}

    def seconds(self) -> dict[str, float]:
        """CPU time of its processes so far, all threads."""
        return {name: time.clock_gettime(~pid << 3 | 2) for name, pid in self._pids.items()}

    def take(self, streams: int, tokens: int, pace: int) -> None:
        """Have it take answers from its engine without HTTP."""
        assert self._process.stdin is not None
        asked = {"streams": streams, "requests": REQUESTS[streams], "tokens": tokens, "pace": pace}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        self._line()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a side has ended")
        return line


Costs = dict[str, float]
"""Microseconds of CPU: ``api`` and ``engine`` a token, ``request`` of both a request."""


def costs(one: Costs, many: Costs, requests: int, tokens: int) -> Costs:
    """From the seconds that answers of one token took, and of ``tokens``."""
    each = {name: 1e6 * (many[name] - one[name]) / (requests * (tokens - 1)) for name in one}
    whole = 1e6 * sum(one.values()) / requests
    return {**each, "request": whole - sum(each.values())}


class Bench:
    """Both sides, and what each answered: the same."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._answers: dict[tuple[str, int], set[bytes]] = {}

    def http(self, side: Side, case: Case, tokens: int, pace: int) -> tuple[Costs, float]:
        """CPU seconds of the processes, and the seconds that passed."""
        asked = case.asked(tokens, pace)
        before, began = side.seconds(), time.perf_counter()
        answers = asyncio.run(ask_all(side.port, asked, case.streams))
        passed, after = time.perf_counter() - began, side.seconds()
        if self._answers.setdefault((case.name, tokens), answers) != answers:
            raise RuntimeError(f"the answers to {case.name} differ")
        return {name: after[name] - before[name] for name in after}, passed

    def messages(self, side: Side, streams: int, tokens: int) -> Costs:
        before = side.seconds()
        side.take(streams, tokens, PACE_US * streams)
        after = side.seconds()
        return {name: after[name] - before[name] for name in after}

    def scrape(self, side: Side) -> dict[str, float]:
        """Milliseconds of CPU that a scrape takes, and its bytes."""
        asked = b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        before = side.seconds()
        answers = asyncio.run(ask_all(side.port, [asked] * SCRAPES, 1))
        after = side.seconds()
        passed = {name: 1e3 * (after[name] - before[name]) / SCRAPES for name in after}
        return {**passed, "bytes": max(map(len, answers))}

    def rate(self, side: Side, case: Case) -> float:
        """Tokens a second where the engine is never waited for."""
        _, seconds = self.http(side, case, self.tokens, 0)
        return REQUESTS[case.streams] * self.tokens / seconds


REPEATS = 3
"""Of answers of one token, which are short."""


@dataclass
class Found:
    """What was measured of one side: seconds of CPU by number of tokens, rates, one a round."""

    requests: int
    one: list[Costs] = field(default_factory=list)
    many: list[Costs] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def figures(self, tokens: int) -> dict[str, float]:
        """Microseconds of CPU, and tokens a second."""
        made = costs(least(self.one), least(self.many), self.requests, tokens)
        return made | ({"tokens_per_second": statistics.median(self.rates)} if self.rates else {})


def least(found: list[Costs]) -> Costs:
    return {name: min(each[name] for each in found) for name in found[0]}


def measure(bench: Bench, side: Side, chosen: list[Case], into: dict[str, Found]) -> None:
    for streams in sorted({case.streams for case in chosen}):
        name = f"messages alone, {streams} streams"
        found = into.setdefault(name, Found(REQUESTS[streams]))
        found.one += [bench.messages(side, streams, 1) for _ in range(REPEATS)]
        found.many.append(bench.messages(side, streams, bench.tokens))
    for case in chosen:
        pace = PACE_US * case.streams
        found = into.setdefault(case.name, Found(REQUESTS[case.streams]))
        found.one += [bench.http(side, case, 1, pace)[0] for _ in range(REPEATS)]
        found.many.append(bench.http(side, case, bench.tokens, pace)[0])
        found.rates.append(bench.rate(side, case))


Figures = dict[str, dict[str, float]]


def ratios(now: Figures, before: Figures) -> Figures:
    return {
        what: {name: value / before[what][name] for name, value in each.items()}
        for what, each in now.items()
    }


def targets(
    now: Figures,
    over: Figures,
    steps: dict[str, dict[str, float]],
    alone: dict[str, float],
    scrape: dict[str, float],
) -> list[Target]:
    """``over``: ratios to the server in which nobody looks."""
    made = []
    if WHOLE in now:
        found = now[WHOLE]
        made += [
            _most(f"CPU time of the server a token, {WHOLE}", found["api"], "us", 30),
            _most(f"CPU time a request, {WHOLE}", found["request"], "us", 800),
            Target(f"rate, {WHOLE}", found["tokens_per_second"], "tokens/s", 20_000, at_most=False),
        ]
    for what, each in over.items():
        if not what.startswith("messages") and "1 " not in what:
            made.append(_most(f"metrics: a token's CPU, {what}", each["api"], "x", 1.03))
            made.append(_most(f"metrics: a request's CPU, {what}", each["request"], "x", 1.05))
    for batch, each in steps.items():
        made.append(
            _most(f"metrics: the host's step of {batch} requests", each["ratio"], "x", 1.05)
        )
    most = {"request": 20, "token": 0.2, "step": 2}
    made += [_most(f"metrics: counting a {w}", alone[w], "us", most[w]) for w in most]
    made.append(_most("CPU time of a scrape", scrape["api"], "ms", 20))
    return made


def _most(title: str, value: float, unit: str, target: float) -> Target:
    return Target(title, value, unit, target, at_most=True)


def show(now: Figures, before: Figures) -> None:
    columns = {"api": 16, "engine": 18, "request": 16, "tokens_per_second": 18}
    print(f"{'':48}{'api us/token':>16}{'engine us/token':>18}{'us/request':>16}{'tokens/s':>18}")
    for what, found in now.items():
        line = f"{what:48}"
        for name, width in columns.items():
            values = [
                f"{side[what][name]:.0f}" if name in side.get(what, {}) else ""
                for side in (before, now)
                if side
            ]
            line += f"{' > '.join(values) if found.get(name) else '':>{width}}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="a checkout of the code before")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=33, help="of the longer answers")
    parser.add_argument("--only", default="", help="cases whose names have this in them")
    options = parser.parse_args()
    chosen = [case for case in cases() if options.only in case.name]
    bench = Bench(options.tokens)
    sides = {"now": Side(HERE.parent), "unseen": Side(HERE.parent, FRONTEND_UNSEEN="1")}
    if options.against:
        sides["before"] = Side(options.against.resolve())
    found: dict[str, dict[str, Found]] = {name: {} for name in sides}
    for index in range(options.rounds + 1):
        turns = list(sides)
        for name in turns if index % 2 else reversed(turns):
            # The first round warms everything up.
            measure(bench, sides[name], chosen, found[name] if index else {})
        print(f"round {index} is done", flush=True)
    scrape = bench.scrape(sides["now"])
    for side in sides.values():
        side.close()
    made = {
        name: {what: each.figures(options.tokens) for what, each in figures.items()}
        for name, figures in found.items()
    }
    now, over = made["now"], ratios(made["now"], made["unseen"])
    show(now, made["unseen"])
    steps, alone = front.steps.measure(), front.steps.alone()
    figures = {
        "tokens_per_answer": options.tokens,
        "rounds": options.rounds,
        "microseconds": "of CPU; api and engine: a token, request: both processes, a request",
        "over_unseen": over,
        **made,
        "step_milliseconds": steps,
        "counting_microseconds": alone,
        "scrape": scrape,
    }
    if "before" in made:
        figures["over_before"] = ratios(now, made["before"])
    write("frontend", figures, targets(now, over, steps, alone, scrape))


if __name__ == "__main__":
    main()
