"""``saccade inspect``: what a detector says of an answer, and where its threshold should lie."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from saccade_server.evaluation.errors import EvaluationError
from saccade_server.options import (
    Artifacts,
    Device,
    Dtype,
    MaxLen,
    Model,
    Threads,
    fail,
    log_to_stderr,
)
from saccade_server.shell.model import check_model
from saccade_server.shell.paths import readable, writable

if TYPE_CHECKING:
    from saccade_server.detectors.base import Detector
    from saccade_server.inspection import Where

PLACE = "detectors[0]"
MOST_RIGHT = 0.05


def inspect_command(
    detector: Annotated[
        str | None,
        typer.Argument(
            metavar="[DETECTOR]",
            help="detector:field=value,field=value; alone, it is described.",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What to ask.")] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", callback=readable, help="Image file; repeat for several."),
    ] = None,
    intervention: Annotated[
        list[str] | None,
        typer.Option(metavar="ENTRY", help="method:field=value,field=value; repeat for several."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            callback=readable,
            help="JSONL of prompts with right answers, as for saccade calibrate: find a threshold.",
        ),
    ] = None,
    most: Annotated[
        float,
        typer.Option(
            "--false-positives", min=0, max=0.5, help="Share of right answers it may flag."
        ),
    ] = MOST_RIGHT,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=writable, help="File of the artifact that anatomy_of_a_lie calibrates."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens that an answer may have.")] = 64,
    url: Annotated[
        str | None, typer.Option(help="Ask this server instead of loading the model here.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="SACCADE_API_KEY", help="Key of the server at --url.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    model: Model = None,
    artifacts: Artifacts = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_model_len: MaxLen = None,
    threads: Threads = None,
) -> None:
    """Score an answer with a detector; without one, list them."""
    from saccade_server.detectors.registry import DETECTORS, describe
    from saccade_server.inspection_view import listing

    if detector is None:
        kinds = [describe(name) for name in DETECTORS]
        if as_json:
            typer.echo(json.dumps(kinds, indent=1))
        else:
            Console(highlight=False).print(listing(kinds))
        return
    log_to_stderr("warning")
    try:
        found = _detector(detector)
        if prompt is None and calibrate is None:
            typer.echo(json.dumps(describe(found.detector_id()), indent=2))
            return
        if prompt is not None and calibrate is not None:
            raise typer.BadParameter("--prompt and --calibrate are two commands; give one of them")
        where = _where(
            url,
            api_key,
            model,
            artifacts,
            device=device,
            dtype=dtype,
            max_model_len=max_model_len,
            threads=threads,
        )
        sampling = {"temperature": 0, "max_tokens": max_tokens}
        if calibrate is not None:
            _calibrate(found, where, calibrate, most, out, artifacts, sampling, as_json)
        else:
            _inspect(found, where, prompt or "", image or [], intervention or [], sampling, as_json)
    except typer.BadParameter:
        raise
    except (ValueError, OSError, EvaluationError) as error:
        raise fail(error) from error


def _detector(text: str) -> Detector:
    from saccade_interventions import shorthand
    from saccade_server.requests.detectors import parse_detectors
    from saccade_server.requests.errors import RequestError

    entry = shorthand.parse(text)
    try:
        (found,) = parse_detectors([{"name": entry.pop("method"), **entry}])
    except RequestError as error:
        raise ValueError(error.message.replace(f"{PLACE}.", "")) from None
    return found


def _where(
    url: str | None, key: str | None, model: str | None, artifacts: Path | None, **engine: Any
) -> Where:
    from saccade_server.cli import FOR_ONE_ANSWER
    from saccade_server.inspection import Where

    if url is None:
        check_model(model)
    limits = {"enforce_eager": True, "cache_tokens": FOR_ONE_ANSWER["cache_tokens"]}
    return Where(url, key, model, artifacts, {**engine, **limits})


def _inspect(
    detector: Detector,
    where: Where,
    prompt: str,
    images: list[Path],
    interventions: list[str],
    sampling: dict[str, Any],
    as_json: bool,
) -> None:
    from saccade_server.evaluation.asking import user_message
    from saccade_server.evaluation.images import file_url
    from saccade_server.inspection import inspect, opened
    from saccade_server.inspection_view import shown
    from saccade_server.shell.entries import read_entries
    from saccade_server.shell.images import check_images

    entries = read_entries(interventions, images, where.artifacts)
    check_images(images)
    entry = _entry(detector)
    messages = user_message(prompt, [file_url(path) for path in images])

    async def work() -> Any:
        async with opened(where) as asker:
            return await inspect(asker, entry, messages, entries, sampling)

    got = _asked(work)
    if as_json:
        document = {"answer": got.text, "token_texts": got.tokens, "detector": got.found}
        typer.echo(json.dumps(document, indent=1))
        return
    console = Console(highlight=False)
    console.print(got.text, markup=False)
    for part in shown(got.found, got.tokens):
        console.print(part, soft_wrap=isinstance(part, Text))


def _calibrate(
    detector: Detector,
    where: Where,
    prompts: Path,
    most: float,
    out: Path | None,
    store: Path | None,
    sampling: dict[str, Any],
    as_json: bool,
) -> None:
    from saccade_server.calibration import thresholds
    from saccade_server.calibration.examples import read_examples
    from saccade_server.inspection import answers, calibrated, opened
    from saccade_server.status_line import StatusLine

    examples, status = read_examples(prompts), StatusLine()
    done = iter(range(1, len(examples) + 1))

    async def work() -> Any:
        async with opened(where) as asker:
            advance = lambda: status.show(f"{next(done)} of {len(examples)} prompts")  # noqa: E731
            return await answers(asker, detector, examples, sampling, advance), asker.fingerprint

    found, fingerprint = _asked(work)
    status.clear()
    made = calibrated(detector, found, most)
    entry = {**_entry(detector), "threshold": made.found.value}
    if made.density is not None:
        entry["artifact"] = _written(made.density, fingerprint, out, store)
    document = thresholds.as_json(made, entry, fingerprint)
    if as_json:
        typer.echo(json.dumps(document, indent=1))
        return
    for line in thresholds.sentences(document):
        typer.echo(line)


def _written(density: Any, fingerprint: str, out: Path | None, store: Path | None) -> str:
    """Write the artifact; returns its digest."""
    from saccade_server.calibration.output import install, write_file

    path = out or Path("density.safetensors")
    written = write_file(path, "density", fingerprint, density, "")
    if store is not None:
        install(written, store)
    typer.echo(f"density artifact: {written.path}", err=True)
    return written.digest


def _entry(detector: Detector) -> dict[str, Any]:
    return {"name": detector.detector_id(), **detector.model_dump(exclude_defaults=True)}


def _asked(work: Callable[[], Any]) -> Any:
    """Run a question; what the server refuses is said in the words of the command line."""
    try:
        return asyncio.run(work())
    except EvaluationError as error:
        said = str(error).removesuffix(f" ({PLACE})").replace(f"{PLACE}.", "")
        raise ValueError(said) from error
