"""A server that is used and misused for long, and then has what it had: no page, row, descriptor,
thread or megabyte more.

    python benchmarks/soak.py [--minutes 20] [--clients 12] [--seed 0]

Clients of every kind (soaking/asks.py) ask the embedded demo model of a `saccade serve` of its own.
Every minute they stop until nobody is served, and what the server's two processes hold is written
down. Memory is given time to become what it will be: allocators keep what they had at most, and
what is kept of pictures, up to a budget, is soon all there, because there are few. So what counts
is the second half of the rests against those before, from a quarter of the time on; everything else
must be what it was at the first rest, but for threads that pools start when they are needed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from report import Target, write
from soaking.asks import Asker, Unexpected
from soaking.processes import IDLE, KEPT_SECONDS, at_rest

ROUND_SECONDS = 60.0
SMALL = {
    "--max-num-seqs": 8,
    "--cache-tokens": 640,
    "--max-model-len": 512,
    "--trace-disk": 64,
    "--keep-alive-timeout": KEPT_SECONDS,
    "--threads": 1,
}
"""Room for few sequences: some wait, and pages run out."""
MORE = {"descriptors": 0, "threads": 2}
"""That a process may have in the end: pools of threads grow to their size when all are busy."""
GROWTH_MIB = 16.0
"""What the memory of a process may differ by, with no trend: an allocator's whims."""


@asynccontextmanager
async def serving(options: argparse.Namespace) -> AsyncIterator[tuple[httpx2.AsyncClient, int]]:
    with socket.socket() as probe, tempfile.TemporaryDirectory() as store:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        command = [sys.executable, "-c", "from saccade_server.cli import main; main()", "serve"]
        limits = (
            *(str(part) for option in SMALL.items() for part in option),
            "--admin-key",
            "soak",
            "--artifacts",
            store,
            "--no-access-log",
        )
        path = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        with options.log.open("w") as log:
            server = subprocess.Popen(
                [*command, "--port", port, *limits], env=environment, stdout=log, stderr=log
            )
        try:
            async with httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                headers={"authorization": "Bearer soak"},
                timeout=120,
                trust_env=False,
            ) as client:
                await _ready(client, server)
                yield client, server.pid
        finally:
            server.terminate()
            server.wait(60)


async def _ready(client: httpx2.AsyncClient, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            if (await client.get("/ready")).status_code == 200:
                return
        except httpx2.TransportError:
            await asyncio.sleep(0.1)
    raise RuntimeError("the server did not start; its log says why")


async def connect(client: httpx2.AsyncClient, seed: int) -> Asker:
    listed = (await client.get("/v1/interventions")).json()["data"]
    offered = [m for m in listed if m["supported"] and not m["needs_artifact"]]
    methods = [(await client.get(f"/v1/interventions/{m['id']}")).json() for m in offered]
    (model,) = (await client.get("/v1/models")).json()["data"]
    document = (await client.get("/openapi.json")).json()["paths"]
    return Asker(
        client,
        methods,
        model["hidden_size"],
        model["fingerprint"],
        "delete" in document["/v1/artifacts/{digest}"],
        random.Random(seed),
    )


async def one_client(asker: Asker, end: float, seen: collections.Counter[str]) -> None:
    while time.monotonic() < end:
        try:
            kind, outcome = await asker.ask()
        except Unexpected as surprise:
            kind, outcome = "unexpected", str(surprise)
            print(surprise, file=sys.stderr)
        seen[f"{kind}: {outcome}"] += 1


async def soak(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, int]]:
    seen: collections.Counter[str] = collections.Counter()
    rests: list[dict[str, Any]] = []
    began = time.monotonic()
    async with serving(options) as (client, pid):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pids = {"api": pid, "engine": int(children[0])}
        asker = await connect(client, options.seed)
        while time.monotonic() - began < options.minutes * 60 or len(rests) < 5:
            end = time.monotonic() + options.round
            await asyncio.gather(*(one_client(asker, end, seen) for _ in range(options.clients)))
            rests.append(await at_rest(str(client.base_url), pids))
            rests[-1]["seconds"] = round(time.monotonic() - began)
            print(rests[-1], file=sys.stderr, flush=True)
    return rests, dict(sorted(seen.items()))


def growth(rests: list[dict[str, Any]], process: str) -> float:
    """MiB by which the later rests have more than those before, the first quarter left out."""
    settled = [rest[process]["rss"] for rest in rests[len(rests) // 4 :]]
    half = len(settled) // 2
    return statistics.median(settled[half:]) - statistics.median(settled[:half])


def more(rests: list[dict[str, Any]], process: str, what: str) -> float:
    """How many more the last rest has than the first."""
    return float(rests[-1][process][what] - rests[0][process][what])


def targets(rests: list[dict[str, Any]], seen: dict[str, int]) -> list[Target]:
    unexpected = sum(count for what, count in seen.items() if what.startswith("unexpected"))
    found = [
        Target("minutes", rests[-1]["seconds"] / 60, "min", 20, at_most=False),
        Target("answers that should not have come", unexpected, "answers", 0, at_most=True),
        Target("interventions lost", rests[-1]["intervention_noops"], "", 0, at_most=True),
    ]
    for name, most in IDLE.items():
        worst = max(rest["idle"][name] for rest in rests)
        found.append(Target(f"{name} at rest", worst, "", most, at_most=True))
    for process in ("api", "engine"):
        for what, most in MORE.items():
            grown = more(rests, process, what)
            found.append(Target(f"{what} more, {process}", grown, "", most, at_most=True))
        grown = growth(rests, process)
        found.append(Target(f"memory more, {process}", grown, "MiB", GROWTH_MIB, at_most=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--round", type=float, default=ROUND_SECONDS, help="seconds between rests")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="the server's")
    options = parser.parse_args()
    rests, seen = asyncio.run(soak(options))
    asked = sum(seen.values())
    figures = {"requests": asked, "clients": options.clients, "seen": seen, "rests": rests}
    write("soak", figures, targets(rests, seen))


if __name__ == "__main__":
    main()
