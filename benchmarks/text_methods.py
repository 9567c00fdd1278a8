"""What steering, dola and head_ablation do to a small real language model, on held-out prompts.

    python benchmarks/text_methods.py [--parts prompts calibrate steering dola copying]

The model is that of ``make real-model``, asked through the server's own API in this process. Parts
may run one by one, and a part that was stopped goes on where it was: what is calibrated and
answered is kept in the work folder. Writes results/text-<part>-*.json. ``prompts`` draws the lists
that heads are calibrated on, which are committed like the hand-written prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from language import copying, facts, tone
from language.asked import CONCURRENCY, Asked, Entries
from language.fluency import Judge
from language.show import table
from report import HERE, write
from rich.console import Console

from saccade_interventions.artifacts import read_artifact
from saccade_server import __version__
from saccade_server.calibration.heads import ranked, sweep_heads
from saccade_server.calibration.sweep import Head, by_first_token
from saccade_server.calibration.terminal import ABLATE
from saccade_server.config import engine_config
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.load import load_core
from saccade_server.evaluation.log import WorkLog
from saccade_server.inprocess import serve_core

PARTS = ("calibrate", "steering", "dola", "copying")
MODEL = HERE.parent / "build" / "models" / "smollm2"
NAME = "smollm2"
MAX_LEN = 512
TRIED = "10,15,20"
"""Residuals that steering may choose from, of 30: a third, half and two thirds of the way."""

DOSES = (-4, -1, 2, 4)
"""Strengths of steering, in those that the calibration chose, beside that itself."""

TOPS = (3, 10, 20)
"""How many of the heads that matter most to copying are ablated."""

CONTROLLED = 10
CONTROLS = 3
MIDDLE: Mapping[str, Any] = {"layers": list(range(2, 15, 2))}
"""The lower half without layer 0, which predicts the token just read where embeddings are tied."""

DOLA: Mapping[str, Mapping[str, Any]] = {
    "dola": {},
    "dola, strength 0.5": {"strength": 0.5},
    "dola, early_norm": {"early_norm": True},
    "dola, layers 2 to 14": MIDDLE,
}
EVERY_CHOICE = {"relative_top": 0.0}
"""For given answers: with a cutoff the wrong and the right one may both be excluded."""


def configuration(options: argparse.Namespace) -> EngineConfig:
    return engine_config(
        str(options.model),
        max_num_seqs=CONCURRENCY,
        max_model_len=MAX_LEN,
        cache_tokens=CONCURRENCY * MAX_LEN,
        threads=options.threads,
    )


@asynccontextmanager
async def serving(options: argparse.Namespace, part: str) -> AsyncIterator[tuple[Asked, int]]:
    """Who answers, and the size of the vocabulary."""
    core = load_core(configuration(options))
    decide = [__version__, core.info.fingerprint, core.info.dtype]
    with WorkLog(options.work / f"{part}.jsonl") as log:
        async with serve_core(
            core, str(options.model), NAME, artifacts=options.work / "store"
        ) as client:
            yield Asked(client, NAME, log, decide), core.info.vocab_size


def vectors(options: argparse.Namespace) -> Path:
    """The artifact that ``saccade calibrate vectors`` makes of the contrastive answers."""
    out: Path = options.work / "tone.safetensors"
    if not out.exists():
        command = ["calibrate", "vectors", str(tone.EXAMPLES), "--out", str(out)]
        command += ["--layers", TRIED]
        command += ["--model", str(options.model), "--artifacts", str(options.work / "store")]
        if options.threads:
            command += ["--threads", str(options.threads)]
        program = "from saccade_server.cli import main; main()"
        subprocess.run([sys.executable, "-c", program, *command], check=True)
    return out


def ranking(options: argparse.Namespace) -> list[tuple[Head, float]]:
    """All heads, by the log-probability of the next word that ablating each takes."""
    out = options.work / "copying.safetensors"
    config, console = configuration(options), Console(stderr=True)
    sweep = sweep_heads(config, copying.EXAMPLES, out, ABLATE, None, by_first_token, console)
    return ranked(asyncio.run(sweep))


async def run_steering(options: argparse.Namespace) -> dict[str, Any]:
    artifact = read_artifact(vectors(options).read_bytes())
    chosen = dict(artifact.defaults)
    if "coefficient" not in chosen:
        raise SystemExit("calibration chose no strength: nothing to multiply")
    entry = {"method": "steering", "artifact": artifact.digest}
    settings: dict[str, Entries] = {"plain": [], "the artifact's defaults": [entry]}
    for dose in DOSES:
        settings[f"{dose:g} times"] = [{**entry, "coefficient": dose * chosen["coefficient"]}]
    everywhere = {**entry, "layers": artifact.tensors["layers"].tolist()}
    settings["every residual, coefficient 2"] = [{**everywhere, "coefficient": 2}]
    async with serving(options, "steering") as (asked, _):
        judge = Judge(options.model)
        found = await tone.measure(asked, judge, settings, options.questions)
    columns = {
        "tone": "tone.mean",
        "change": "tone.change",
        "new words": "tone_of_new_words.change",
        "broken": "broken",
        "log p": "logprob.mean",
        "repeats": "repetition",
    }
    table(found["settings"], columns)
    return {"calibrated": chosen, "artifact": artifact.digest, **found}


async def run_dola(options: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, tuple[Entries, Entries]] = {"plain": ([], [])}
    for name, fields in DOLA.items():
        entry = {"method": "dola", **fields}
        settings[name] = ([entry], [{**entry, **EVERY_CHOICE}])
    async with serving(options, "dola") as (asked, _):
        found = await facts.measure(asked, settings)
    columns = {
        "says right": "right.mean",
        "change": "right.change",
        "prefers right": "preferred.mean",
        "change ": "preferred.change",
        "margin": "margin.mean",
        "change  ": "margin.change",
    }
    table(found["settings"], columns)
    return found


async def run_copying(
    options: argparse.Namespace, order: Sequence[tuple[Head, float]]
) -> dict[str, Any]:
    heads = [head for head, _ in order]
    width = 1 + max(head for _, head in heads)
    settings: dict[str, Sequence[Head]] = {"plain": []}
    settings |= {f"top {count}": heads[:count] for count in TOPS}
    others = copying.controls(heads[:CONTROLLED], width, CONTROLS)
    settings |= {f"others of these layers, draw {at}": drawn for at, drawn in enumerate(others, 1)}
    async with serving(options, "copying") as (asked, vocabulary):
        found = await copying.measure(asked, vocabulary, settings)
    columns = {
        "lists": "lists_right.mean",
        "log p": "lists_logprob.mean",
        "random tokens": "random_tokens_right.mean",
        "log p ": "random_tokens_logprob.mean",
        "facts": "facts_right.mean",
    }
    table(found["settings"], columns)
    ranks = [{"head": list(head), "lost": round(lost, 4)} for head, lost in order]
    return {"ranking": ranks, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=("prompts", *PARTS), default=PARTS)
    parser.add_argument("--model", type=Path, default=MODEL, help="a folder")
    parser.add_argument(
        "--work", type=Path, default=Path("build/text-methods"), help="kept between runs"
    )
    parser.add_argument("--questions", type=int, help="of those steered; if absent all")
    parser.add_argument("--threads", type=int, help="of the CPU")
    options = parser.parse_args()
    for part in options.parts:
        began = time.perf_counter()
        match part:
            case "prompts":
                copying.write_examples()
            case "calibrate":
                vectors(options)
                ranking(options)
            case "steering":
                keep(part, asyncio.run(run_steering(options)))
            case "dola":
                keep(part, asyncio.run(run_dola(options)))
            case "copying":
                keep(part, asyncio.run(run_copying(options, ranking(options))))
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)


def keep(part: str, found: Mapping[str, Any]) -> None:
    model = "SmolLM2-135M-Instruct, from four-bit weights (make real-model), float32"
    write(f"text-{part}", {"model": model, **found}, [], show=False)


if __name__ == "__main__":
    main()
