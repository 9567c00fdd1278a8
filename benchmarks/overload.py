"""What a server does at ten times its capacity: the demo model, and clients on the same cores.

    python benchmarks/overload.py [--seconds 30] [--seats 16]

Capacity is what as many clients as the engine has seats get, each asking again as soon as it is
answered. Then requests come at random at ten times that rate, whoever is answered, refused or
waits, for a server that is started with half of such an answer's time as ``--max-queue-time``.
Times are those of the clients, from the first byte sent to the last one read; nobody retries.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from front.clients import Connection, request
from report import Target, write

MOST_FACTOR = 2.0
"""Times the p95 at capacity that accepted requests may take."""
MOST_REFUSAL = 0.1
"""Seconds until a refusal."""
TIMES = 10
TOKENS = 48
WARM_SECONDS = 5.0
QUESTION = "What is in the picture? " * 3


@dataclass
class Seen:
    """Seconds of answers and of refusals; anything else by its status line."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    other: dict[str, int] = field(default_factory=dict)

    def note(self, reply: bytes, seconds: float) -> None:
        status = reply[9:12]
        if status == b"200":
            self.answered.append(seconds)
        elif status == b"503":
            self.refused.append(seconds)
        else:
            line = reply.partition(b"\r\n")[0].decode("latin-1")
            self.other[line] = self.other.get(line, 0) + 1


def asked() -> bytes:
    """One of the requests; no two have the same seed, all as many tokens."""
    message = {"role": "user", "content": QUESTION}
    body = {
        "messages": [message],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "seed": random.randrange(2**31),
    }
    return request("/v1/chat/completions", body)


@contextmanager
def served(seats: int, *options: str) -> Iterator[int]:
    """A server of the demo model in processes of its own; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from saccade_server.cli import main; main()", "serve"]
    told = ["--port", str(port), "--threads", "1", "--max-num-seqs", str(seats)]
    told += ["--no-self-test", "--no-access-log", *options]
    process = subprocess.Popen([*command, *told], stdout=subprocess.DEVNULL)
    try:
        while not is_ready(port):
            if process.poll() is not None:
                raise RuntimeError("the server has ended")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


class Clients:
    """Connections that are kept; whoever asks takes one that is idle, or a new one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []

    async def ask(self, seen: Seen | None) -> None:
        self._idle = [each for each in self._idle if each.is_open]
        if not self._idle:
            loop = asyncio.get_running_loop()
            _, made = await loop.create_connection(Connection, "127.0.0.1", self._port)
            self._idle.append(made)
        connection = self._idle.pop()
        body = asked()
        began = time.perf_counter()
        try:
            reply = await connection.ask(body)
        except OSError as error:
            reply = f"HTTP/1.1 {type(error).__name__}".encode()
        else:
            self._idle.append(connection)
        if seen is not None:
            seen.note(reply, time.perf_counter() - began)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


async def at_capacity(port: int, seats: int, seconds: float) -> tuple[Seen, float]:
    """Answers of clients that ask again and again, and how many there were a second."""
    clients, seen = Clients(port), Seen()
    ends = time.perf_counter() + WARM_SECONDS + seconds

    async def client() -> None:
        while (now := time.perf_counter()) < ends:
            await clients.ask(seen if now > ends - seconds else None)

    await asyncio.gather(*(client() for _ in range(seats)))
    clients.close()
    return seen, len(seen.answered) / seconds


async def overloaded(port: int, rate: float, seconds: float) -> Seen:
    """What comes of requests that arrive at random, so many a second."""
    clients, seen = Clients(port), Seen()
    tasks: set[asyncio.Task[None]] = set()
    due = began = time.perf_counter()
    while due < began + WARM_SECONDS + seconds:
        due += random.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        counts = due > began + WARM_SECONDS
        tasks.add(asyncio.create_task(clients.ask(seen if counts else None)))
    await asyncio.gather(*tasks)
    clients.close()
    return seen


def quantile(values: list[float], share: float) -> float | None:
    """The value that so many of them do not exceed; None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def shape(values: list[float]) -> dict[str, Any]:
    return {
        "count": len(values),
        **{f"p{100 * share:g}": quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0)},
    }


def measured(seats: int, seconds: float) -> dict[str, Any]:
    """Capacity, and what happens at ten times that."""
    with served(seats) as port:
        capacity, rate = asyncio.run(at_capacity(port, seats, seconds))
    usual = quantile(capacity.answered, 0.5)
    assert usual is not None, capacity.other
    patience = usual / 2
    with served(seats, "--max-queue-time", f"{patience:.3f}") as port:
        warm, _ = asyncio.run(at_capacity(port, seats, WARM_SECONDS))
        seen = asyncio.run(overloaded(port, TIMES * rate, seconds))
    return {
        "seats": seats,
        "requests_per_second_at_capacity": rate,
        "max_queue_time": patience,
        "at_capacity": shape(capacity.answered),
        "refused_at_capacity": len(capacity.refused) + len(warm.refused),
        "answered": shape(seen.answered),
        "answered_per_second": len(seen.answered) / seconds,
        "refused": shape(seen.refused),
        "other": seen.other,
    }


def targets(found: dict[str, Any]) -> list[Target]:
    before, after, refused = found["at_capacity"], found["answered"], found["refused"]
    factor = after["p95"] / before["p95"] if after["p95"] else None
    kept = found["answered_per_second"] / found["requests_per_second_at_capacity"]
    wrong = sum(found["other"].values())
    return [
        Target(
            "p95 of answers at ten times capacity, over at capacity", factor, "x", MOST_FACTOR, True
        ),
        Target("refusals, p99", refused["p99"], "s", MOST_REFUSAL, True),
        Target("refusals, slowest", refused["p100"], "s", MOST_REFUSAL, True),
        Target("answers a second, over at capacity", kept, "x", 0.8, False),
        Target("requests neither answered nor refused", wrong, "", 0, True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seats", type=int, default=16)
    options = parser.parse_args()
    found = measured(options.seats, options.seconds)
    write("overload", found, targets(found))


if __name__ == "__main__":
    main()
