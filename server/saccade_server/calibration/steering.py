"""What ``calibrate vectors`` and ``head-vectors`` do: find directions, try them, show, write."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from saccade_interventions.artifacts import artifact_id
from saccade_interventions.defaults import NOTHING
from saccade_interventions.vectors import RESIDUAL, Site
from saccade_server.calibration.directions import Method
from saccade_server.calibration.examples import Labelled, classes, read_examples
from saccade_server.calibration.judging import Kind, Setting, choose
from saccade_server.calibration.output import DIGEST, as_artifact, show_table, write_file
from saccade_server.calibration.sweep import log_path
from saccade_server.calibration.terminal import finish
from saccade_server.calibration.trials import show_choice, show_trials
from saccade_server.calibration.tuning import Tuning, halves, kind_of, spread, try_strengths
from saccade_server.calibration.vectors import (
    Calibrator,
    FoundVector,
    in_heads,
    in_layers,
)
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.evaluation.log import WorkLog

UNJUDGED = 1.0
"""The strength where nothing says what is right: vectors as they are, one standard deviation."""


@dataclass(frozen=True)
class Sources:
    """What both commands take. ``layers`` are numbers at the site; ``top`` heads are kept."""

    config: EngineConfig
    prompts: Path
    out: Path
    method: Method = "mean"
    positive: str | None = None
    notes: str = ""
    store: Path | None = None
    layers: Sequence[int] | None = None
    top: int = 10
    site: Site = RESIDUAL


def calibrate_vectors(sources: Sources, tuning: Tuning | None = None) -> None:
    """One direction a layer; with ``tuning``, which of them to use and how strongly."""
    console = Console(stderr=True)
    trying = None if tuning is None else _Trying.of(sources, tuning)
    calibrator = Calibrator(sources.config, sources.prompts, console)
    site = sources.site
    collected = calibrator.at_site(sources.out, site, sources.layers, sources.positive)
    found = in_layers(collected, site, sources.method)
    _show_vectors(console, site, found)
    there: Mapping[str, Any] = NOTHING if site == RESIDUAL else {"site": site}
    defaults = there
    if trying is not None:
        places = [place for (place,) in collected.places]
        tried = places if sources.layers is not None else spread(places)
        tensors = _layer_tensors(in_layers(collected.of(trying.mine), site, sources.method))
        data = as_artifact("vectors", calibrator.fingerprint, tensors)
        entry = {"method": "steering", "artifact": artifact_id(data), **there}
        entries = {
            Setting(place, strength): {**entry, "layers": [place], "coefficient": strength}
            for place, strength in itertools.product(tried, trying.strengths)
        }
        surest = max(found, key=lambda item: item.separation).place[0]
        chosen = _tune(console, calibrator, trying, data, entries, surest)
        defaults = {**there, "layers": [chosen.place], "coefficient": chosen.strength}
    written = write_file(
        sources.out,
        "vectors",
        calibrator.fingerprint,
        _layer_tensors(found),
        sources.notes,
        defaults,
    )
    finish(console, written, {"method": "steering", "artifact": DIGEST}, sources.store)


def calibrate_head_vectors(sources: Sources, tuning: Tuning | None = None) -> None:
    """Unit directions of the heads that separate best, with the spread along them (ITI)."""
    console = Console(stderr=True)
    trying = None if tuning is None else _Trying.of(sources, tuning)
    calibrator = Calibrator(sources.config, sources.prompts, console)
    collected = calibrator.heads(sources.out, sources.positive)
    everywhere = in_heads(collected, sources.method)
    if len(everywhere) < len(collected.places):
        without = f"{len(collected.places) - len(everywhere)} of {len(collected.places)} heads"
        console.print(f"{without} are left out: both classes have the same mean there")
    found = everywhere[: sources.top]
    rows = [(*map(str, item.place), f"{item.accuracy:.1%}", f"{item.sigma:.4g}") for item in found]
    show_table(console, ("layer", "head", "classes told apart (held out)", "sigma"), rows)
    defaults: Mapping[str, Any] = NOTHING
    if trying is not None:
        half = in_heads(collected.of(trying.mine), sources.method)[: sources.top]
        data = as_artifact("head_vectors", calibrator.fingerprint, _head_tensors(half))
        entry = {"method": "head_steering", "artifact": artifact_id(data)}
        entries = {
            Setting(None, strength): {**entry, "alpha": strength} for strength in trying.strengths
        }
        defaults = {"alpha": _tune(console, calibrator, trying, data, entries, None).strength}
    written = write_file(
        sources.out,
        "head_vectors",
        calibrator.fingerprint,
        _head_tensors(found),
        sources.notes,
        defaults,
    )
    finish(console, written, {"method": "head_steering", "artifact": DIGEST}, sources.store)


@dataclass(frozen=True)
class _Trying:
    """Directions of the prompts ``mine``, bool [prompts], are to be tried on the others.

    ``kind`` None: nothing says what is right.
    """

    mine: torch.Tensor
    held_out: Sequence[Labelled]
    positives: Sequence[bool]  # of these
    kept: Sequence[Labelled]
    kind: Kind | None
    strengths: Sequence[float]
    out: Path
    site: Site

    @classmethod
    def of(cls, sources: Sources, tuning: Tuning) -> _Trying:
        """Check all that needs no model.

        Raises:
            CalibrationError: a file cannot be read, has too few prompts, or some have no answer.
        """
        examples = read_examples(sources.prompts)
        positives = classes(examples, sources.positive)
        mine, kind = halves(positives), kind_of(examples)
        rest = [at for at, is_mine in enumerate(mine.tolist()) if not is_mine]
        return cls(
            mine,
            [examples[at] for at in rest],
            [positives[at] for at in rest],
            [] if tuning.keep is None else read_examples(tuning.keep),
            kind,
            tuning.strengths,
            sources.out,
            sources.site,
        )


def _tune(
    console: Console,
    calibrator: Calibrator,
    trying: _Trying,
    data: bytes,
    entries: Mapping[Setting, Mapping[str, Any]],
    surest: int | None,
) -> Setting:
    """Where and how strongly; ``surest`` is the place to take if nothing helps.

    Args:
        data: the artifact of one half of the prompts.
        entries: what to try, by setting; they name that artifact.
    """
    if trying.kind is None:
        chosen = Setting(surest, UNJUDGED)
        show_choice(console, chosen, None, trying.site)
        return chosen
    core = EngineCore(calibrator.model, calibrator.config, (), calibrator.fingerprint)
    with WorkLog(log_path(trying.out)) as log, Progress(console=console) as progress:
        bar = progress.add_task("strengths", total=len(entries))
        work = try_strengths(
            core,
            calibrator.prompts,
            data,
            entries,
            trying.kind,
            trying.held_out,
            trying.positives,
            trying.kept,
            log,
            lambda: progress.advance(bar),
        )
        tuned = asyncio.run(work)
    show_trials(console, tuned, trying.site)
    chosen = choose(tuned.trials) or Setting(surest, min(trying.strengths, key=abs))
    show_choice(console, chosen, tuned, trying.site)
    return chosen


def _show_vectors(console: Console, site: Site, found: Sequence[FoundVector]) -> None:
    rows = [
        (
            str(item.place[0]),
            f"{float(item.vector.norm()):.4g}",
            f"{float(item.vector.norm()) / item.size:.3f}",
            "unknown" if math.isnan(item.accuracy) else f"{item.accuracy:.1%}",
        )
        for item in found
    ]
    what = "residual" if site == RESIDUAL else "layer"
    held = "residuals" if site == RESIDUAL else "outputs"
    header = (what, "length", f"relative to {held}", "classes told apart (held out)")
    show_table(console, header, rows)


def _layer_tensors(found: Sequence[FoundVector]) -> dict[str, Any]:
    return {
        "vectors": torch.stack([item.vector for item in found]).numpy(),
        "layers": [item.place[0] for item in found],
    }


def _head_tensors(found: Sequence[FoundVector]) -> dict[str, Any]:
    return {
        "heads": [item.place for item in found],
        "vectors": torch.stack([item.vector / item.vector.norm() for item in found]).numpy(),
        "sigma": [item.sigma for item in found],
    }
