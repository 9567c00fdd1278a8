"""What the ``calibrate`` commands do: find, show, write."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from saccade_interventions import shorthand
from saccade_server.calibration.collect import partial_path
from saccade_server.calibration.examples import CalibrationError
from saccade_server.calibration.heads import helpful, ranked, sweep_heads
from saccade_server.calibration.output import (
    DIGEST,
    Written,
    install,
    show_table,
    show_use,
    write_file,
)
from saccade_server.calibration.sinks import find_sinks
from saccade_server.calibration.sweep import Head, by_answer, by_first_token, log_path
from saccade_server.calibration.vectors import Calibrator
from saccade_server.engine.config import EngineConfig
from saccade_server.models.family import load_model
from saccade_server.models.fingerprint import fingerprint
from saccade_server.models.opening import first_token

ACT_FIRST_LAYER = 2
"""The paper calibrates no head of the first two layers."""

ABLATE: Mapping[str, Any] = {"method": "head_ablation", "mode": "zero"}
MOST_SHOWN = 20


def calibrate_act(
    config: EngineConfig,
    prompts: Path,
    out: Path,
    layers: Sequence[int] | None,
    margin: float,
    by_probability: bool,
    entry: str,
    notes: str,
    store: Path | None,
) -> None:
    """Heads whose calibration helps by more than ``margin``."""
    console = Console(stderr=True)
    method = shorthand.parse(entry)
    measure = by_first_token if by_probability else by_answer
    swept = asyncio.run(
        sweep_heads(
            config, prompts, out, method, layers, measure, console, first_layer=ACT_FIRST_LAYER
        )
    )
    kept = helpful(swept, margin)
    plain = swept.plain
    console.print(f"plain: {plain.right} of {plain.total} right, {plain.accuracy:.1%}")
    rows = []
    for head in helpful(swept, -math.inf)[:MOST_SHOWN]:
        result = swept.heads[head]
        change = f"{100 * (result.accuracy - plain.accuracy):+.1f}"
        logs = "" if result.logprob is None else f"{result.logprob - (plain.logprob or 0.0):+.4f}"
        mark = "kept" if head in kept else ""
        rows.append((*map(str, head), f"{result.accuracy:.1%}", change, logs, mark))
    header = ("layer", "head", "right", "change, points", "change of log p", "")
    show_table(console, header, rows)
    if not kept:
        raise CalibrationError(f"no head helps by more than {margin:g}; nothing was written")
    console.print(f"{len(kept)} of {len(swept.heads)} heads are kept")
    _write_heads(console, out, swept.fingerprint, kept, notes, method, store)


def calibrate_heads(
    config: EngineConfig,
    prompts: Path,
    out: Path,
    layers: Sequence[int] | None,
    top: int,
    harmful: bool,
    notes: str,
    store: Path | None,
) -> None:
    """The ``top`` heads by the effect of ablating them."""
    console = Console(stderr=True)
    swept = asyncio.run(sweep_heads(config, prompts, out, ABLATE, layers, by_first_token, console))
    order = ranked(swept)
    chosen = (order[::-1] if harmful else order)[:top]
    console.print(
        f"plain: label's first token {swept.plain.accuracy:.1%} right, "
        f"mean log p {swept.plain.logprob:.3f}"
    )
    rows = [
        (*map(str, head), f"{effect:+.4f}", f"{swept.heads[head].accuracy:.1%}")
        for head, effect in chosen
    ]
    header = ("layer", "head", "log p of the label lost by ablation", "right without it")
    show_table(console, header, rows)
    kept = [head for head, _ in chosen]
    _write_heads(console, out, swept.fingerprint, kept, notes, ABLATE, store)


def calibrate_head_means(
    config: EngineConfig, prompts: Path, out: Path, notes: str, store: Path | None
) -> None:
    """The mean output of each head."""
    console = Console(stderr=True)
    calibrator = Calibrator(config, prompts, console)
    means = calibrator.head_means(out)
    layers, heads, size = means.shape
    console.print(f"mean outputs of {layers} x {heads} heads of size {size}")
    tensors = {"means": means.numpy()}
    written = write_file(out, "head_means", calibrator.fingerprint, tensors, notes)
    finish(
        console,
        written,
        {"method": "head_ablation", "mode": "mean", "means": DIGEST, "heads": {"0": [0]}},
        store,
    )


def calibrate_sinks(config: EngineConfig, out: Path, notes: str, store: Path | None) -> None:
    """Sink dimensions, as the server would find them at load."""
    console = Console(stderr=True)
    dtype, device = getattr(torch, config.dtype), torch.device(config.device)
    model = load_model(config.model, dtype=dtype, device=device)
    found = find_sinks(model, first_token(config.model))
    if not found.dims:
        raise CalibrationError("no dimension of the residual stream stands out; nothing is written")
    console.print(
        f"sink dimensions {list(found.dims)}: |x| / RMS(x) of the first token by layer; "
        f"a sink has at least {found.threshold:.2f}"
    )
    rows = [
        (str(layer), *(f"{score:.1f}" for score in scores))
        for layer, scores in found.scores.items()
    ]
    show_table(console, ("layer", *map(str, found.dims)), rows)
    written = write_file(out, "sinks", fingerprint(model), {"dims": list(found.dims)}, notes)
    console.print(f'Methods that look for sinks take them as "sink_dims": {list(found.dims)}')
    finish(console, written, None, store)


def _write_heads(
    console: Console,
    out: Path,
    model: str,
    kept: Sequence[Head],
    notes: str,
    entry: Mapping[str, Any],
    store: Path | None,
) -> None:
    written = write_file(out, "heads", model, {"heads": sorted(kept)}, notes)
    finish(console, written, {**entry, "artifact": DIGEST}, store)


def finish(
    console: Console, written: Written, entry: Mapping[str, Any] | None, store: Path | None
) -> None:
    """Install and explain; then what made the run resumable has done its work."""
    if store is not None:
        install(written, store)
    show_use(console, written, entry, store)
    for path in (log_path(written.path), partial_path(written.path)):
        path.unlink(missing_ok=True)
