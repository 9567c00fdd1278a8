"""Kill one of three replicas under load, bring it back, drain another: what do clients see?

Two hundred clients ask without a pause, a mix of plain and edited requests, streams, scores. Every
answer is compared with what a lone server says to the same request, and its receipt with that
server's: no request may be answered without the intervention it asked for, or wrongly, or never.

    python benchmarks/chaos.py [--backend haproxy] [--clients 200]

Exits with 1 if a target is missed. Replicas are demo models on a CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from report import HERE, Target, write

sys.path.append(str(HERE.parent / "tests" / "support"))

import httpx2
from chaotic.asked import PROFILES, Asked, Said, mix, vectors
from chaotic.backend import ADMIN_KEY, Backend, Shared
from chaotic.course import HANG_SECONDS, Course, counted, outcome, verdict
from chaotic.proxied import options

from saccade_client import AsyncSaccade, Saccade
from saccade_server.demo import model_path
from saccade_testing.launch import Served

BACKENDS = {"haproxy": ("chaotic.proxied", "Proxied"), "ray": ("chaotic.clustered", "Clustered")}
KILLED, DRAINED = 0, 1
AT_A_TIME = 4  # requests of the lone server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="haproxy")
    parser.add_argument("--clients", type=int, default=200)
    given = parser.parse_args()
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    module, name = BACKENDS[given.backend]
    with tempfile.TemporaryDirectory(prefix="saccade-chaos-") as folder:
        shared = prepared(Path(folder))
        requests, right = lone(shared)
        backend: Backend = getattr(import_module(module), name)(shared)
        try:
            figures, targets = asyncio.run(chaos(backend, requests, right, given.clients))
        finally:
            backend.close()
    write(f"chaos-{given.backend}", figures, targets)
    return 0 if all(target.met for target in targets) else 1


def prepared(folder: Path) -> Shared:
    """The folders and files that replicas share."""
    shared = Shared(*(folder / name for name in ("artifacts", "traces", "profiles.toml", "logs")))
    shared.logs.mkdir()
    shared.profiles.write_text(PROFILES)
    return shared


def lone(shared: Shared) -> tuple[list[Asked], dict[str, Said]]:
    """The mix, and what a server without others says to each of its requests."""
    server = Served(shared.logs / "lone.log", *options(shared))
    try:
        server.wait_until_ready()
        requests = mix(put_artifact(server.url))
        return requests, asyncio.run(lone_answers(server.url, requests))
    finally:
        server.end()


def put_artifact(url: str) -> str:
    """Put vectors for the served model into the folder that all replicas share."""
    facts = httpx2.get(f"{url}/v1/deployment", timeout=30, trust_env=False).json()["facts"]
    config = json.loads((model_path() / "config.json").read_text())["text_config"]
    data = vectors(facts["fingerprint"], config["num_hidden_layers"], config["hidden_size"])
    with Saccade(url, admin_key=ADMIN_KEY) as client:
        return client.put_artifact(data).id


async def lone_answers(url: str, requests: list[Asked]) -> dict[str, Said]:
    """What is right: each request asked when little else is."""
    room = asyncio.Semaphore(AT_A_TIME)
    async with AsyncSaccade(url) as client:

        async def one(asked: Asked) -> tuple[str, Said]:
            async with room:
                found = await outcome(client, asked)
            assert found.said is not None, f"{asked.name}: {found.error}"
            return asked.name, found.said

        return dict(await asyncio.gather(*map(one, requests)))


async def chaos(
    backend: Backend, requests: list[Asked], right: dict[str, Said], clients: int
) -> tuple[dict[str, Any], list[Target]]:
    """Kill, bring back, drain, all while clients ask."""
    course = Course(backend.url, requests, clients)
    asking = asyncio.create_task(course.run())
    events: dict[str, Any] = {}
    began = time.monotonic()

    async def happens(name: str, step: Any) -> None:
        events[name] = {"in_flight": course.in_flight, "after_s": round(time.monotonic() - began)}
        before = len(course.outcomes)
        await asyncio.to_thread(step)
        events[name] |= {"took_s": round(time.monotonic() - began - events[name]["after_s"], 1)}
        events[name] |= {"ended_meanwhile": len(course.outcomes) - before}

    await course.more(clients // 2)
    await happens("killed", lambda: backend.kill(KILLED))
    await happens("restored", lambda: backend.restore(KILLED))
    await course.more(clients // 2)
    drain_began = time.monotonic()
    await happens("drained", lambda: backend.drain(DRAINED))
    await course.more(clients // 2)
    course.stopping = True
    await asyncio.wait_for(asking, HANG_SECONDS * 2)
    found = counted(course.outcomes, right)
    after_drain = [
        failure for one in course.outcomes for failure in one.failures if failure[1] > drain_began
    ]
    figures = {
        "requests": len(course.outcomes),
        "distinct_requests": len(requests),
        "asked_for_interventions": sum(one.asked.steered for one in course.outcomes),
        "answers_that_edits_change": changed(requests, right),
        "outcomes": found,
        "tries_that_failed": sum(len(one.failures) for one in course.outcomes),
        "tries_that_failed_once_one_drained": len(after_drain),
        "errors": sorted({one.error for one in course.outcomes if one.error}),
        "wrong": wrong(course, right),
        "events": events,
        "longest_request_s": round(max(one.ended - one.began for one in course.outcomes), 1),
        "seconds": round(time.monotonic() - began, 1),
    }
    return figures, targets(figures, found, backend.lost(), clients)


def changed(requests: list[Asked], right: dict[str, Said]) -> float:
    """The share of edited requests whose answers differ from the plain ones to the same."""
    plain = {key(one): right[one.name] for one in requests if not one.steered}
    edited = [one for one in requests if one.steered and key(one) in plain]
    differ = sum(not right[one.name].says(plain[key(one)]) for one in edited)
    return round(differ / len(edited), 3)


def key(asked: Asked) -> tuple[str, str]:
    """What a request has in common with the plain one of its form."""
    form, *_, picture = asked.name.split(" ")
    return form, picture


def wrong(course: Course, right: dict[str, Said]) -> list[str]:
    """The first few requests with wrong answers, with what they said."""
    bad = ("another answer", "without its intervention")
    found = [one for one in course.outcomes if verdict(one, right[one.asked.name]) in bad]
    return [f"{one.asked.name}: {one.said}, not {right[one.asked.name]}" for one in found[:5]]


def targets(
    figures: dict[str, Any], found: dict[str, int], lost: int, clients: int
) -> list[Target]:
    """What the chaos must show."""
    flying = min(figures["events"][name]["in_flight"] for name in ("killed", "drained"))
    drained = figures["tries_that_failed_once_one_drained"]
    ways = ("hung", "unclear error", "without its intervention", "another answer")
    return [
        Target("requests in flight when one is killed, and drained", flying, "", clients, False),
        *(Target(f"requests that ended: {way}", found.get(way, 0), "", 0, True) for way in ways),
        Target("interventions that replicas lost", lost, "", 0, True),
        Target("tries that failed once one drained", drained, "", 0, True),
    ]


if __name__ == "__main__":
    sys.exit(main())
