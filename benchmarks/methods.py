"""What every method does to the demo model's answers, and what it costs; writes docs/evaluation.md.

    python benchmarks/methods.py [--parts artifacts scenes speed page]

Parts may run one by one, and a part that was stopped goes on where it was: artifacts and answers
are kept in the work folder. `scenes` writes results/scenes-*.json, `speed` results/methods-*.json,
`page` docs/evaluation.md from these two, and what `saccade demo` shows of them. The committed run
takes the sizes that are the defaults.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

from effects import artifacts as calibration
from effects.page import page
from effects.settings import settings
from effects.speed import measure
from report import HERE, Target, folder, hardware, write
from rich.console import Console

from saccade_server.config import DEMO_NAME, engine_config
from saccade_server.demo import EFFECTS_PATH
from saccade_server.demo.effects import extract
from saccade_server.engine.load import load_core
from saccade_server.evaluation.asking import Asker
from saccade_server.evaluation.log import WorkLog
from saccade_server.evaluation.report import as_document, tables
from saccade_server.evaluation.scenes import Scale
from saccade_server.evaluation.terminal import ANSWERS, Run, ask_all, open_client
from saccade_server.inprocess import serve_core

PARTS = ("artifacts", "scenes", "speed", "page")
PAGE = HERE.parent / "docs" / "evaluation.md"
MARKDOWN = "tables.md"
CONCURRENCY = 32
MOST_TOKENS = 64
GOAL = 1.15
"""What var may cost, as a ratio; the other methods do more and have no goal."""


def make_artifacts(options: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """Whatever is made already is only read."""
    return calibration.make(options.work, options.work / "store")


async def run_scenes(
    options: argparse.Namespace, made: dict[str, str], failed: dict[str, str]
) -> None:
    run = Run(
        folder=options.work,
        settings=None,
        methods=(),
        scale=Scale(options.scenes, tuple(options.seeds), options.validation),
        sampling={"temperature": 0.0, "max_tokens": MOST_TOKENS},
        concurrency=CONCURRENCY,
        artifacts=options.work / "store",
        engine={"max_num_seqs": CONCURRENCY},
    )
    with WorkLog(options.work / ANSWERS) as log:
        async with open_client(run) as (client, where):
            asker = await Asker.connect(client, CONCURRENCY)
            chosen, missing = settings(await asker.methods(), made, failed)
            outcome = await ask_all(run, asker, where, log, chosen, Console(stderr=True))
    outcome.refused = {**missing, **outcome.refused}
    (options.work / MARKDOWN).write_text(tables(outcome))
    described = {name: calibration.DESCRIBED[name] for name in made}
    write("scenes", {"artifacts": described, **as_document(outcome)}, [], show=False)


async def run_speed(
    options: argparse.Namespace, made: dict[str, str], failed: dict[str, str]
) -> None:
    core = load_core(engine_config(max_num_seqs=CONCURRENCY))
    async with serve_core(
        core, str(engine_config().model), DEMO_NAME, artifacts=options.work / "store"
    ) as client:
        asker = await Asker.connect(client, CONCURRENCY)
        chosen, _ = settings(await asker.methods(), made, failed)
        found = await measure(client, DEMO_NAME, core, chosen, options.rounds, options.tokens)
    write(
        "methods",
        {
            "model": "embedded demo model",
            "rounds": options.rounds,
            "tokens_per_request": options.tokens,
            "settings": found,
        },
        _targets(found),
        show=False,
    )


def _targets(found: dict[str, Any]) -> list[Target]:
    var = found.get("var", {})
    return [
        Target(f"{what} with var, over none", var[what]["ratio"], "x", GOAL, at_most=True)
        for what in ("prompt", "token_alone", "token_at_16")
        if what in var
    ]


def write_page(options: argparse.Namespace) -> None:
    scenes, speed = (
        json.loads((folder() / f"{name}-{hardware()}.json").read_text())
        for name in ("scenes", "methods")
    )
    text = page(scenes, speed, (options.work / MARKDOWN).read_text())
    (options.page or PAGE).write_text(text)
    print(options.page or PAGE)
    if options.page is None:
        write_effects(scenes)


def write_effects(scenes: dict[str, Any]) -> None:
    """What ships with the demo model."""
    source = (folder() / f"scenes-{hardware()}.json").relative_to(HERE.parent)
    shipped = extract(scenes, source.as_posix())
    EFFECTS_PATH.write_text(json.dumps(shipped, indent=1) + "\n", encoding="utf-8")
    print(EFFECTS_PATH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--work", type=Path, default=Path("build/methods"), help="kept between runs"
    )
    parser.add_argument("--scenes", type=int, default=40, help="of a split and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--validation", type=int, default=120, help="scenes to tune on")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed part")
    parser.add_argument("--tokens", type=int, default=32, help="of a timed answer")
    parser.add_argument("--page", type=Path, help="where to write it instead of docs/")
    options = parser.parse_args()
    for part in options.parts:
        began = time.perf_counter()
        match part:
            case "artifacts":
                print(json.dumps(make_artifacts(options), indent=1))
            case "scenes":
                asyncio.run(run_scenes(options, *make_artifacts(options)))
            case "speed":
                asyncio.run(run_speed(options, *make_artifacts(options)))
            case "page":
                write_page(options)
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
