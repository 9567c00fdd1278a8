"""Artifacts of the demo model for the methods that need one, calibrated on validation scenes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from saccade_interventions.artifacts import read_artifact
from saccade_server.calibration.examples import CalibrationError
from saccade_server.calibration.heads import ranked, sweep_heads
from saccade_server.calibration.output import install, write_file
from saccade_server.calibration.steering import (
    Sources,
    calibrate_head_vectors,
    calibrate_vectors,
)
from saccade_server.calibration.sweep import by_first_token
from saccade_server.calibration.terminal import ABLATE, calibrate_act
from saccade_server.config import engine_config
from saccade_server.demo.splits import Split
from saccade_server.evaluation.export import Questions, export_scenes

SCENES = 80
"""Labelled questions for each calibration."""

SEED = 1
"""Of the validation scenes; strengths are tuned on those of seed 0."""

ACT_MARGIN = 0.002
"""Nats by which a head must raise the labels' mean log-probability. One head alone changes so few
of this model's answers that accuracy cannot tell heads apart."""

VECTOR_LAYER = 3
TOP_HEADS = 6
HARMFUL_HEADS = 2

DESCRIBED: Mapping[str, str] = {
    "act": "heads whose calibration raises the probability of right answers to companion questions",
    "vectors": f"mean difference in residual {VECTOR_LAYER} between questions about a companion "
    "that is absent (positive) and present (negative)",
    "head_vectors": f"the {TOP_HEADS} heads whose outputs tell these two apart best, with the "
    "directions that do",
    "important": f"the {TOP_HEADS} heads whose ablation lowers the probability of right answers "
    "to companion questions the most",
    "harmful": f"the {HARMFUL_HEADS} heads whose ablation raises it the most",
}
"""What is made, by name."""


def make(folder: Path, store: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Calibrate what is not there yet, and put everything into ``store``.

    Returns:
        Name -> digest, and name -> why there is none.
    """
    split = Split.VALIDATION
    answers = export_scenes(folder / "answers", split, Questions.COMPANION, SCENES, SEED)
    absence = export_scenes(folder / "absence", split, Questions.ABSENCE, SCENES, SEED)
    config = engine_config()

    def vectors() -> None:
        out = folder / "vectors.safetensors"
        calibrate_vectors(Sources(config, absence, out, store=store, layers=[VECTOR_LAYER]))

    def head_vectors() -> None:
        out = folder / "head_vectors.safetensors"
        calibrate_head_vectors(Sources(config, absence, out, store=store, top=TOP_HEADS))

    def ranked_heads() -> None:
        out = folder / "heads"
        console = Console(stderr=True)
        sweep = sweep_heads(config, answers, out, ABLATE, None, by_first_token, console)
        swept = asyncio.run(sweep)
        order = [head for head, _ in ranked(swept)]
        chosen = {"important": order[:TOP_HEADS], "harmful": order[-HARMFUL_HEADS:]}
        for name, heads in chosen.items():
            path = folder / f"{name}.safetensors"
            tensors = {"heads": sorted(heads)}
            install(write_file(path, "heads", swept.fingerprint, tensors, ""), store)

    def act() -> None:
        out = folder / "act.safetensors"
        calibrate_act(config, answers, out, None, ACT_MARGIN, True, "act", "", store)

    works: Mapping[Callable[[], None], tuple[str, ...]] = {
        vectors: ("vectors",),
        head_vectors: ("head_vectors",),
        ranked_heads: ("important", "harmful"),
        act: ("act",),
    }
    made: dict[str, str] = {}
    failed: dict[str, str] = {}
    for work, names in works.items():
        paths = {name: folder / f"{name}.safetensors" for name in names}
        try:
            if not all(path.exists() for path in paths.values()):
                work()
            made |= {name: read_artifact(path.read_bytes()).digest for name, path in paths.items()}
        except CalibrationError as error:
            failed |= {name: str(error) for name in names}
    return made, failed
