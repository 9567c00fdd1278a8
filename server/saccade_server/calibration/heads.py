"""``calibrate act`` and ``calibrate heads``: heads chosen by what editing each alone does.

ACT (Yu et al., ICML 2024): run the calibration set with one head calibrated at a time, keep the
heads whose accuracy exceeds the plain model's by more than a margin. The published code leaves the
last step out; the margin is ours, because on a small set many heads look helpful by chance. Where
one head alone hardly changes an answer, the labels' probability is the finer criterion.

``heads`` ranks by ablation: how much the mean log-probability of the labels' first token falls when
the head's output is set to zero, without gradients (the question of Michel et al., 2019).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from saccade_server import __version__
from saccade_server.calibration.examples import CalibrationError, read_examples
from saccade_server.calibration.sweep import Head, Measure, Result, Sweep, log_path
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.load import load_core
from saccade_server.engine.request import EngineInfo
from saccade_server.evaluation.asking import Asker
from saccade_server.evaluation.log import WorkLog
from saccade_server.inprocess import serve_core

CONCURRENCY = 64
NAME = "calibrated"
ROUNDING = 1e-9
"""51 % minus 50 % is one point and no more."""


@dataclass(frozen=True)
class Swept:
    """What a sweep found. ``fingerprint`` is the model's."""

    fingerprint: str
    plain: Result
    heads: Mapping[Head, Result]


async def sweep_heads(
    config: EngineConfig,
    prompts: Path,
    out: Path,
    entry: Mapping[str, Any],
    layers: Sequence[int] | None,
    measure: Measure,
    console: Console,
    first_layer: int = 0,
) -> Swept:
    """Run the prompts with ``entry`` at each head of ``layers`` alone.

    Args:
        layers: None: all from ``first_layer`` on.

    Raises:
        CalibrationError, EvaluationError: it cannot be done.
        ValueError: the model cannot be served.
    """
    examples = read_examples(prompts)
    async with _serving(config) as (asker, info):
        heads = _heads(info, layers, first_layer)
        facts = [__version__, info.fingerprint, config.dtype, dict(entry), measure.__name__]
        with WorkLog(log_path(out)) as log, Progress(console=console) as progress:
            bar = progress.add_task("plain", total=len(examples) * (len(heads) + 1))

            def entries(head: Head) -> list[dict[str, Any]]:
                progress.update(bar, description=f"layer {head[0]}, head {head[1]}")
                return [{**entry, "heads": {str(head[0]): [head[1]]}}]

            advance: Callable[[], None] = lambda: progress.advance(bar)  # noqa: E731
            sweep = Sweep(asker, examples, entries, measure, log, facts, advance)
            plain, found = await sweep.run(heads)
    return Swept(info.fingerprint, plain, found)


def helpful(swept: Swept, margin: float) -> list[Head]:
    """Heads whose calibration helps by more than ``margin``, best first.

    What counts is the mean log-probability of the labels where it was asked for, in nats, and the
    share of right answers otherwise.
    """
    gains = {head: _value(result) - _value(swept.plain) for head, result in swept.heads.items()}
    kept = [head for head, gain in gains.items() if gain > margin + ROUNDING]
    return sorted(kept, key=lambda head: (-gains[head], head))


def ranked(swept: Swept) -> list[tuple[Head, float]]:
    """All heads with their importance, the fall of the label's mean log-probability; top first."""
    before = swept.plain.logprob or 0.0
    found = [(head, before - (result.logprob or 0.0)) for head, result in swept.heads.items()]
    return sorted(found, key=lambda item: (-item[1], item[0]))


def _value(result: Result) -> float:
    return result.accuracy if result.logprob is None else result.logprob


@asynccontextmanager
async def _serving(config: EngineConfig) -> AsyncIterator[tuple[Asker, EngineInfo]]:
    core = load_core(config)
    async with serve_core(core, config.model, NAME) as client:
        yield Asker(client, NAME, CONCURRENCY), core.info


def _heads(info: EngineInfo, layers: Sequence[int] | None, first: int) -> list[Head]:
    chosen = range(min(first, info.layers - 1), info.layers) if layers is None else layers
    for layer in chosen:
        if not 0 <= layer < info.layers:
            raise CalibrationError(f"there is no layer {layer}; the model has {info.layers}")
    return [(layer, head) for layer in chosen for head in range(info.heads)]
