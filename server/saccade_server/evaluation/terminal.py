"""One run of ``saccade eval scenes``: server, progress bar, files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.progress import Progress

from saccade_interventions import suggest
from saccade_server.evaluation.answers import Answers
from saccade_server.evaluation.asking import Asker
from saccade_server.evaluation.errors import EvaluationError
from saccade_server.evaluation.log import WorkLog
from saccade_server.evaluation.report import as_document, dump, tables
from saccade_server.evaluation.scenes import Outcome, Scale, evaluate
from saccade_server.evaluation.settings import Setting, listed_settings, read_settings
from saccade_server.evaluation.view import show

ANSWERS = "answers.jsonl"
RESULTS = "results.json"
TABLES = "results.md"


@dataclass(frozen=True)
class Run:
    """What the command line asked for. ``engine``: of the server in this process, without url."""

    folder: Path
    settings: Path | None
    methods: tuple[str, ...]
    scale: Scale
    sampling: Mapping[str, Any]
    concurrency: int
    url: str | None = None
    api_key: str | None = None
    model: str | None = None
    artifacts: Path | None = None
    engine: Mapping[str, Any] | None = None


async def run_scenes(run: Run) -> None:
    """Measure, print and write; what the folder holds already is not asked again.

    Raises:
        EvaluationError: it cannot be done.
        ValueError: the model or the server's options make no sense.
    """
    console = Console(stderr=True)
    with WorkLog(run.folder / ANSWERS) as log:
        async with open_client(run) as (client, where):
            asker = await Asker.connect(client, run.concurrency)
            settings, skipped = await _settings(run, asker)
            outcome = await ask_all(run, asker, where, log, settings, console)
    outcome.refused = {**skipped, **outcome.refused}
    document = {"model": asker.model, "sampling": dict(run.sampling), **as_document(outcome)}
    (run.folder / RESULTS).write_text(dump(document), encoding="utf-8")
    (run.folder / TABLES).write_text(tables(outcome), encoding="utf-8")
    show(outcome, Console(highlight=False))
    console.print(f"[dim]{run.folder / RESULTS}, {run.folder / TABLES}[/dim]")


async def ask_all(
    run: Run,
    asker: Asker,
    where: str,
    log: WorkLog,
    settings: list[Setting],
    console: Console | None,
) -> Outcome:
    """Evaluate with a progress bar on the console, if there is one."""
    with Progress(console=console, disable=console is None) as progress:
        bar = progress.add_task("", total=None)

        def announce(what: str, asks: int) -> None:
            progress.reset(bar, total=asks, description=what)

        identity, sampling = f"{where} {asker.fingerprint}", dict(run.sampling)
        answers = Answers(asker, log, identity, sampling, lambda: progress.advance(bar))
        return await evaluate(answers, settings, run.scale, announce)


@asynccontextmanager
async def open_client(run: Run) -> AsyncIterator[tuple[Any, str]]:
    """A client of the server to ask, and a text that tells its model from others."""
    if run.url is not None:
        headers = {"Authorization": f"Bearer {run.api_key}"} if run.api_key else {}
        async with httpx2.AsyncClient(base_url=run.url, headers=headers, timeout=600) as client:
            yield client, run.url
        return
    from saccade_server.config import engine_config, served_name
    from saccade_server.inprocess import open_server

    config = engine_config(run.model, **(run.engine or {}))
    name = served_name(run.model, None)
    async with open_server(config, name, artifacts=run.artifacts) as client:
        yield client, f"{config.model} {config.dtype}"


async def _settings(run: Run, asker: Asker) -> tuple[list[Setting], dict[str, str]]:
    """What to compare, and what cannot be, with the reason."""
    skipped: dict[str, str] = {}
    if run.settings is not None:
        found = read_settings(run.settings)
    else:
        found, skipped = listed_settings(await asker.methods())
    if run.methods:
        known = {setting.name for setting in found} | skipped.keys()
        unknown = sorted(set(run.methods) - known)
        if unknown:
            # A server at --url may have methods that are not installed here, or lack some.
            raise EvaluationError(f"--method: {suggest.unknown('setting', unknown[0], known)}")
        found = [setting for setting in found if setting.name in run.methods]
        skipped = {name: reason for name, reason in skipped.items() if name in run.methods}
    return found, skipped
