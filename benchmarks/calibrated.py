"""What artifacts of ``saccade calibrate`` do to the demo model's answers when a request names no
strength, on scenes that calibration did not see; writes results/calibrated-*.json.

    python benchmarks/calibrated.py

The artifacts are those of docs/calibration.md, from the validation split; the scenes are those of
the other splits. Beside them stand what the same vectors do at full length everywhere, which is
what a request gets of an artifact without defaults, and the paper's alpha. Artifacts and answers
are kept in the work folder, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from report import write
from rich.console import Console

from saccade_interventions.artifacts import Artifact, read_artifact
from saccade_server.calibration.commands import ALPHAS, COEFFICIENTS
from saccade_server.calibration.steering import Sources, calibrate_head_vectors, calibrate_vectors
from saccade_server.calibration.tuning import Tuning
from saccade_server.config import engine_config
from saccade_server.demo.splits import Split
from saccade_server.evaluation.asking import Asker
from saccade_server.evaluation.export import Questions, export_scenes
from saccade_server.evaluation.log import WorkLog
from saccade_server.evaluation.report import as_document
from saccade_server.evaluation.scenes import Scale
from saccade_server.evaluation.settings import Setting
from saccade_server.evaluation.terminal import ANSWERS, Run, ask_all, open_client

PROMPTS, PROMPTS_SEED = 200, 1
KEPT, KEPT_SEED = 60, 2
CONCURRENCY = 32
MOST_TOKENS = 64
PUBLISHED_ALPHA = 15


def make(work: Path) -> dict[str, Artifact]:
    """Calibrate what is not there yet."""
    split, config = Split.VALIDATION, engine_config()
    scenes = export_scenes(work / "scenes", split, Questions.ABSENCE, PROMPTS, PROMPTS_SEED)
    kept = export_scenes(work / "captions", split, Questions.DESCRIBE, KEPT, KEPT_SEED)
    found = {}
    for name, calibrate, strengths in (
        ("vectors", calibrate_vectors, COEFFICIENTS),
        ("head_vectors", calibrate_head_vectors, ALPHAS),
    ):
        out = work / f"{name}.safetensors"
        if not out.exists():
            sources = Sources(config, scenes, out, store=work / "store")
            calibrate(sources, Tuning(tuple(map(float, strengths.split(","))), kept))
        found[name] = read_artifact(out.read_bytes())
    return found


def settings(made: dict[str, Artifact]) -> list[Setting]:
    steering = {"method": "steering", "artifact": made["vectors"].digest}
    heads = {"method": "head_steering", "artifact": made["head_vectors"].digest}
    everywhere = {"layers": made["vectors"].tensors["layers"].tolist(), "coefficient": 1}
    return [
        Setting("steering", (steering,)),
        Setting("head_steering", (heads,)),
        Setting("steering, all vectors at 1", ({**steering, **everywhere},)),
        Setting("head_steering, alpha 15", ({**heads, "alpha": PUBLISHED_ALPHA},)),
    ]


async def measure(options: argparse.Namespace, made: dict[str, Artifact]) -> dict[str, Any]:
    run = Run(
        folder=options.work,
        settings=None,
        methods=(),
        scale=Scale(options.scenes, tuple(options.seeds), 0),
        sampling={"temperature": 0.0, "max_tokens": MOST_TOKENS},
        concurrency=CONCURRENCY,
        artifacts=options.work / "store",
        engine={"max_num_seqs": CONCURRENCY, "threads": options.threads},
    )
    with WorkLog(options.work / ANSWERS) as log:
        async with open_client(run) as (client, where):
            asker = await Asker.connect(client, CONCURRENCY)
            outcome = await ask_all(run, asker, where, log, settings(made), Console(stderr=True))
    return as_document(outcome)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/calibrated"))
    parser.add_argument("--scenes", type=int, default=40, help="of a split and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    began = time.perf_counter()
    made = make(options.work)
    seconds = time.perf_counter() - began
    found = asyncio.run(measure(options, made))
    chosen = {name: dict(artifact.defaults) for name, artifact in made.items()}
    described = {
        "labelled_prompts": f"{PROMPTS} of the validation split, seed {PROMPTS_SEED}, absence",
        "kept_prompts": f"{KEPT} of the validation split, seed {KEPT_SEED}, captions",
        "defaults": chosen,
        "seconds": round(seconds, 1),
    }
    write("calibrated", {"calibration": described, **found}, [], show=False)


if __name__ == "__main__":
    main()
