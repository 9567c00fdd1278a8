"""Requests and files that nobody would write: what the API's own document allows and forbids, and
broken images, artifacts, bodies and files of vectors.

    python benchmarks/fuzz.py [--parts api model files] [--seed 0]

`api` asks a server on a real socket over a scripted engine: every example and every boundary of its
document, random data that fits it and that does not, chains of requests. `model` asks a
`saccade serve` of the embedded demo model, without the boundaries, which are many. Wrong is an
answer that the document does not name or describe, a 5xx but 503, invalid data that is accepted,
valid data that is refused for what the document could have said, an answer that does not come, a
server that answers the next request otherwise, an intervention that was lost. `files` are damaged
at random and read in this process; wrong is whatever is not the reader's own refusal.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from report import HERE, Target, write

sys.path.append(str(HERE.parent / "tests" / "support"))

from saccade_testing.api.server import start_server
from saccade_testing.fuzz.campaign import PHASES, Campaign, Outcome
from saccade_testing.fuzz.files import READERS, SECONDS, Found, examine
from saccade_testing.fuzz.vectors import VECTORS
from saccade_testing.launch import Served

PARTS = ("api", "model", "files")
KEY = {"authorization": "Bearer fuzz"}
PROBE = {
    "messages": [{"role": "user", "content": "Describe the image."}],
    "temperature": 0,
    "max_tokens": 8,
}
WITHOUT_BOUNDARIES = tuple(phase for phase in PHASES if phase != "coverage")
EXAMPLES = {"api": 150, "model": 200}
"""Random requests of each operation and kind."""
FILES = 5000
"""Damaged files of each format."""
PATIENCE = 3600
"""Seconds after which a part that hangs says where."""


@contextmanager
def scripted() -> Iterator[httpx2.Client]:
    with tempfile.TemporaryDirectory() as store:
        server = start_server(
            artifacts=Path(store),
            admin_keys=("fuzz",),
            max_image_pixels=1_000_000,
            request_timeout=20.0,
        )
        server.http.headers.update(KEY)
        try:
            yield server.http
        finally:
            server.stop()


@contextmanager
def served() -> Iterator[httpx2.Client]:
    with tempfile.TemporaryDirectory() as folder:
        options = ("--admin-key", "fuzz", "--max-num-seqs", "4", "--cache-tokens", "2048")
        server = Served(Path(folder) / "log", *options, "--no-access-log", OMP_NUM_THREADS="1")
        try:
            server.wait_until_ready()
            with httpx2.Client(
                base_url=server.url, headers=KEY, timeout=60, trust_env=False
            ) as client:
                yield client
        finally:
            server.end()


def asked(client: httpx2.Client, name: str, seed: int, phases: tuple[str, ...]) -> Outcome:
    campaign = Campaign.of(client, KEY, PROBE)
    outcome = campaign.run(seed, EXAMPLES[name], phases)
    lost = client.get("/load").json()["intervention_noops"]
    if lost:
        outcome.blame("interventions were lost", str(lost))
    return outcome


def of_requests(outcome: Outcome) -> dict[str, Any]:
    return {
        "requests": outcome.total,
        "seconds": round(outcome.seconds, 1),
        "sent": dict(sorted(outcome.sent.items())),
        "statuses": dict(sorted(outcome.statuses.items())),
        "answered": dict(sorted(outcome.answered.items())),
        "valid but refused": dict(outcome.reasons.most_common()),
        "problems": dict(outcome.problems.most_common()),
        "samples": outcome.samples,
    }


def of_files(found: Found) -> dict[str, Any]:
    return {
        "files": found.total,
        "refused": sum(found.refused.values()),
        "formats": dict(found.files),
        "slowest_seconds": round(found.slowest, 3),
        "problems": dict(found.problems.most_common()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("saccade", "uvicorn.error"):
        logging.getLogger(name).setLevel("ERROR")  # a 400 is not worth a line here
    figures: dict[str, Any] = {"seed": options.seed}
    targets = []
    for part, open_server, phases, least in (
        ("api", scripted, PHASES, 2000),
        ("model", served, WITHOUT_BOUNDARIES, 300),
    ):
        if part in options.parts:
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            with open_server() as client:
                outcome = asked(client, part, options.seed, phases)
            figures[part] = of_requests(outcome)
            wrong = sum(outcome.problems.values())
            targets += [
                Target(f"requests, {part}", outcome.total, "requests", least, at_most=False),
                Target(f"wrong, {part}", wrong, "requests", 0, at_most=True),
            ]
    if "files" in options.parts:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        readers, began = READERS | VECTORS, time.monotonic()
        found = {n: examine(n, reader, FILES, options.seed) for n, reader in readers.items()}
        figures["files"] = {name: of_files(each) for name, each in found.items()}
        figures["files_seconds"] = round(time.monotonic() - began, 1)
        total = sum(each.total for each in found.values())
        wrong = sum(sum(each.problems.values()) for each in found.values())
        slowest = max(each.slowest for each in found.values())
        targets += [
            Target("damaged files", total, "files", 10_000, at_most=False),
            Target("wrong, files", wrong, "files", 0, at_most=True),
            Target("slowest file", slowest, "s", SECONDS, at_most=True),
        ]
    faulthandler.cancel_dump_traceback_later()
    write("fuzz", figures, targets)


if __name__ == "__main__":
    main()
