"""What methods do to the demo model's captions, on whole held-out splits.

Strengths are not tuned: each method at its defaults and at a few stronger settings, all reported.
Runs the engine in this process; every caption is greedy.

    python benchmarks/interventions.py [--scenes 300]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from chat import body
from report import write

from saccade_server.config import DEMO_NAME, engine_config
from saccade_server.demo.evaluate import CAPTION_JUDGES, Rate
from saccade_server.demo.questions import Kind
from saccade_server.demo.splits import Example, Split, examples
from saccade_server.inprocess import open_server

SPLITS = (Split.CLEAR, Split.ORDINARY, Split.COUNTERFACTUAL)
CONCURRENCY = 32
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "var": [{"method": "var"}],
    "var, move_fraction 0.9": [{"method": "var", "move_fraction": 0.9}],
    "pai": [{"method": "pai"}],
    "pai, alpha 0.5": [{"method": "pai", "alpha": 0.5}],
    "pai, alpha 0.5, from layer 1": [{"method": "pai", "alpha": 0.5, "layers": [1, 2, 3, 4, 5]}],
    "pai, alpha 1, from layer 1": [{"method": "pai", "alpha": 1.0, "layers": [1, 2, 3, 4, 5]}],
}


async def caption(client: Any, example: Example, entries: list[dict[str, Any]]) -> str:
    sent = body(example.image, example.question, entries, max_tokens=100)
    response = await client.post("/v1/chat/completions", json=sent)
    answer = response.json()
    assert response.status_code == 200, answer
    return str(answer["choices"][0]["message"]["content"])


async def measure(scenes: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Rates by setting, split and judge."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    async with open_server(engine_config(), DEMO_NAME) as client:
        gate = asyncio.Semaphore(CONCURRENCY)

        async def one(example: Example, entries: list[dict[str, Any]]) -> str:
            async with gate:
                return await caption(client, example, entries)

        for name, entries in SETTINGS.items():
            began = time.perf_counter()
            found[name] = {}
            for split in SPLITS:
                asked = list(examples(split, Kind.DESCRIBE, scenes))
                answers = await asyncio.gather(*(one(example, entries) for example in asked))
                found[name][split.value] = {
                    judge: _rate([verdict(e, a) for e, a in zip(asked, answers, strict=True)])
                    for judge, verdict in CAPTION_JUDGES.items()
                }
            print(f"{name:30} {time.perf_counter() - began:5.1f} s", flush=True)
    return found


def _rate(verdicts: list[bool]) -> dict[str, Any]:
    rate = Rate(sum(verdicts), len(verdicts))
    return {"share": round(rate.share, 4), "interval_95": [round(end, 4) for end in rate.interval]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=300, help="scenes per split")
    options = parser.parse_args()
    found = asyncio.run(measure(options.scenes))
    for judge in CAPTION_JUDGES:
        print(f"\n{judge}: {', '.join(split.value for split in SPLITS)}")
        for name, splits in found.items():
            shares = "  ".join(f"{splits[s.value][judge]['share']:6.1%}" for s in SPLITS)
            print(f"  {name:30} {shares}")
    write("interventions", {"scenes_per_split": options.scenes, "rates": found}, [])


if __name__ == "__main__":
    main()
