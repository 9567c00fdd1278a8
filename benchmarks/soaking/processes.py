"""What the processes of a server hold: memory, descriptors, threads; and what it says of itself."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

MIB = 2**20
QUIET_SECONDS = 60.0
KEPT_SECONDS = 2
"""How long the server keeps a connection that nobody uses."""
IDLE: dict[str, float] = {
    "running": 0,
    "waiting": 0,
    "plans": 0,
    "cache_usage": 0,
    "http_requests": 1,
}
"""What GET /load says of a server that nobody else asks: plans are held rows of the tables,
cache_usage held pages, and the one request is the question itself."""


@dataclass(frozen=True)
class Held:
    """Of one process: resident memory in MiB, open descriptors, threads."""

    rss: float
    descriptors: int
    threads: int


def _load(url: str) -> dict[str, Any]:
    """Over a connection that ends with the answer."""
    headers = {"authorization": "Bearer soak", "connection": "close"}
    found: dict[str, Any] = httpx2.get(f"{url}/load", headers=headers, trust_env=False).json()
    return found


def held(pid: int) -> Held:
    folder = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    return Held(
        rss=int(status["VmRSS"].split()[0]) * 1024 / MIB,
        descriptors=len(os.listdir(folder / "fd")),
        threads=int(status["Threads"]),
    )


async def at_rest(url: str, pids: dict[str, int]) -> dict[str, Any]:
    """Wait until nobody is served and no kept connection is left, and look.

    What does not become idle within a minute is reported as it is.
    """
    end = time.monotonic() + QUIET_SECONDS
    load: dict[str, Any] = {}
    while time.monotonic() < end:
        load = await asyncio.to_thread(_load, url)
        if all(load[name] <= most for name, most in IDLE.items()):
            break
        await asyncio.sleep(0.25)
    await asyncio.sleep(KEPT_SECONDS + 2)
    processes = {name: vars(held(pid)) for name, pid in pids.items()}
    counts = ("steps", "preemptions", "generated_tokens", "intervention_noops")
    return {
        "idle": {name: load[name] for name in IDLE},
        **processes,
        **{name: load[name] for name in counts},
    }
