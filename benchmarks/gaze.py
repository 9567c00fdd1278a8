"""Does look_at move the demo model's gaze, and does that help? Writes results/gaze-*.json.

    python benchmarks/gaze.py [--scenes 200]

Scenes are held out, and their boxes are known, so this says what looking could do for whoever knows
where to look. Every setting is asked the same questions, through the server's own API in this
process: changes are paired, with a bootstrap over scenes and a sign test, as in docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from looking import asked
from looking.asked import Asked
from report import write
from rich.console import Console
from rich.table import Table

from saccade_server.config import engine_config
from saccade_server.demo.pointing import POINTING_HEADS, POINTING_LAYERS
from saccade_server.demo.rates import wilson
from saccade_server.demo.splits import Split
from saccade_server.evaluation.statistics import LEVELS, RESAMPLES, sign_test
from saccade_server.inprocess import open_server

NAME = "demo"
CONCURRENCY = 32
MOST_TOKENS = 64
POINTING = {str(layer): list(POINTING_HEADS) for layer in POINTING_LAYERS}
"""Heads that training taught to look at what is spoken of."""

SETTINGS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    **{f"strength {s}": {"strength": s} for s in (1, 2, 4, 8)},
    "strength 4, elsewhere -4": {"strength": 4, "elsewhere": -4},
    "only there": {"strength": 0, "elsewhere": "suppress"},
    "strength 4, four heads": {"strength": 4, "heads": POINTING},
    "only there, four heads": {"strength": 0, "elsewhere": "suppress", "heads": POINTING},
    "strength -4": {"strength": -4},
    "suppress": {"strength": "suppress"},
}


def questions(scenes: int) -> dict[str, list[Asked]]:
    return {
        "describe, at one of the things": list(asked.described(scenes, empty=False)),
        "describe, at an empty place": list(asked.described(scenes, empty=True)),
        "is the companion there? it is": list(asked.companions(Split.ORDINARY, scenes, False)),
        "is the companion there? it is, looking elsewhere": list(
            asked.companions(Split.ORDINARY, scenes, True)
        ),
        "is the companion there? it is not": list(
            asked.companions(Split.COUNTERFACTUAL, scenes, True)
        ),
        "describe, at all things, counterfactual": list(
            asked.captions(Split.COUNTERFACTUAL, scenes)
        ),
    }


async def answers(
    client: Any, items: Sequence[Asked], fields: dict[str, Any] | None
) -> list[dict[str, float]]:
    """What is counted of every answer."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(item: Asked) -> dict[str, float]:
        image = {"type": "image_url", "image_url": {"url": item.image}}
        text = {"type": "text", "text": item.question}
        body = {
            "model": NAME,
            "messages": [{"role": "user", "content": [image, text]}],
            "interventions": item.interventions(fields),
            "temperature": 0,
            "max_tokens": MOST_TOKENS,
            "trace": {"heatmaps": {"reduce": ["layer", "head"], "sinks": "keep"}},
        }
        async with gate:
            response = await client.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        (choice,) = response.json()["choices"]
        gaze = item.gaze(choice["trace"]["arrays"]["heatmaps.0"]["data"])
        return {"gaze": gaze, **item.judge(choice["message"]["content"])}

    return list(await asyncio.gather(*map(one, items)))


def compared(found: np.ndarray, plain: np.ndarray) -> dict[str, Any]:
    """A share, and its change against the plain answers about the same scenes."""
    binary = bool(np.isin(found, (0, 1)).all())
    ends = wilson(float(found.mean()), len(found)) if binary else resampled(found)
    entry = rounded(found, ends)
    if found is plain:
        return entry
    changes = found - plain
    p = float(f"{sign_test(changes):.3g}")
    return {**entry, "change": {**rounded(changes, resampled(changes)), "sign_p": p}}


def rounded(values: np.ndarray, ends: tuple[float, float]) -> dict[str, float]:
    """A mean and the ends of its interval."""
    mean = float(values.mean())
    return {"value": round(mean, 4), "low": round(ends[0], 4), "high": round(ends[1], 4)}


def resampled(values: np.ndarray) -> tuple[float, float]:
    """The interval of a mean, by a bootstrap over scenes."""
    picked = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[picked].mean(1), LEVELS)
    return float(low), float(high)


async def measure(scenes: int, threads: int | None) -> dict[str, Any]:
    config = engine_config(max_num_seqs=CONCURRENCY, cache_tokens=32768, threads=threads)
    results: dict[str, Any] = {}
    async with open_server(config, NAME) as client:
        for title, items in questions(scenes).items():
            plain: dict[str, np.ndarray] = {}
            results[title] = {"n": len(items), "settings": {}}
            for name, fields in SETTINGS.items():
                counted = await answers(client, items, fields)
                values = {key: np.array([each[key] for each in counted]) for key in counted[0]}
                plain = plain or values
                results[title]["settings"][name] = {
                    key: compared(value, plain[key]) for key, value in values.items()
                }
            show(title, results[title])
        noops = (await client.get("/load")).json()["intervention_noops"]
    return {"results": results, "intervention_noops": noops}


def show(title: str, found: dict[str, Any]) -> None:
    """One row a setting; a star marks changes beyond chance."""
    settings = found["settings"]
    table = Table(f"{title} (n = {found['n']})", *settings["plain"], box=None)
    for name, values in settings.items():
        table.add_row(name, *map(_cell, values.values()))
    Console(width=130).print(table)


def _cell(value: dict[str, Any]) -> str:
    text = f"{100 * value['value']:.1f}"
    change = value.get("change")
    if change is None:
        return text
    beyond = change["sign_p"] < 0.05 and (change["low"] > 0 or change["high"] < 0)
    return f"{text} ({100 * change['value']:+.1f}{'*' if beyond else ''})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--threads", type=int, help="of the CPU")
    options = parser.parse_args()
    began = time.perf_counter()
    found = asyncio.run(measure(options.scenes, options.threads))
    print(f"{time.perf_counter() - began:.0f} s", flush=True)
    write("gaze", {"model": "the demo model", "settings": SETTINGS, **found}, [], show=False)


if __name__ == "__main__":
    main()
