"""``saccade eval``: its command line. Imports of torch and the server wait until a command runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

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
from saccade_server.shell.commands import Commands
from saccade_server.shell.model import check_model
from saccade_server.shell.paths import folder, readable

app = typer.Typer(
    name="eval",
    cls=Commands,
    help="Measure what interventions do to answers about scenes whose content is known.",
    short_help="Measure what interventions do to answers.",
)


@app.command("scenes", short_help="Score settings on scenes, against none.")
def scenes_command(
    out: Annotated[
        Path, typer.Option(callback=folder, help="Folder of the results; a rerun goes on there.")
    ] = Path("scenes"),
    settings: Annotated[
        Path | None,
        typer.Option(callback=readable, help="TOML or JSON; if absent all methods at defaults."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this method, or setting; repeat for several."),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose strengths on the validation split, too.")
    ] = False,
    scenes: Annotated[int, typer.Option(min=2, help="Scenes of each split and seed.")] = 100,
    seeds: Annotated[
        str, typer.Option(help="Seeds of scenes and of sampled answers, as 0,1,2.")
    ] = "0,1,2",
    validation: Annotated[
        int, typer.Option(min=2, help="Scenes of the validation split, with --tune.")
    ] = 200,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")
    ] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens that an answer may have.")] = 64,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions asked at a time.")] = 32,
    url: Annotated[
        str | None, typer.Option(help="A running server; if absent one in this process.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="For --url.", envvar="SACCADE_API_KEY")
    ] = None,
    artifacts: Artifacts = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_model_len: MaxLen = None,
    threads: Threads = None,
) -> None:
    """Object hallucination and yes/no scores of each setting, against none on the same scenes."""
    from saccade_server.evaluation.errors import EvaluationError
    from saccade_server.evaluation.settings import check_names

    log_to_stderr("warning")
    chosen_seeds = _numbers(seeds)
    try:
        if url is None:
            check_model(model)
        check_names(method or (), settings)
    except (ValueError, EvaluationError) as error:
        raise fail(error) from error
    from saccade_server.evaluation.scenes import Scale
    from saccade_server.evaluation.terminal import Run, run_scenes

    limits: dict[str, Any] = {"max_num_seqs": concurrency}
    run = Run(
        folder=out,
        settings=settings,
        methods=tuple(method or ()),
        scale=Scale(scenes, chosen_seeds, validation if tune else 0),
        sampling={"temperature": temperature, "max_tokens": max_tokens},
        concurrency=concurrency,
        url=url,
        api_key=api_key,
        model=model,
        artifacts=artifacts,
        engine={
            "device": device,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "threads": threads,
            **limits,
        },
    )
    try:
        asyncio.run(run_scenes(run))
    except (ValueError, OSError, EvaluationError) as error:
        raise fail(error) from error


@app.command("export-scenes", short_help="Write prompts to calibrate with.")
def export_command(
    out: Annotated[Path, typer.Option(callback=folder, help="Folder of the prompts and images.")],
    split: Annotated[
        str, typer.Option(help="validation, or one of clear, ordinary, counterfactual.")
    ] = "validation",
    questions: Annotated[
        str, typer.Option(help="exists, companion, describe, or absence (positive and negative).")
    ] = "exists",
    count: Annotated[int, typer.Option(min=1, help="Prompts to write.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
) -> None:
    """Write labelled prompts of the demo world, for saccade calibrate."""
    from saccade_server.demo.splits import Split
    from saccade_server.evaluation.export import Questions, export_scenes

    _check_choice("--split", split, Split)
    _check_choice("--questions", questions, Questions)
    try:
        path = export_scenes(out, Split(split), Questions(questions), count, seed)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    typer.echo(path)


def _check_choice(option: str, value: str, choices: Iterable[Enum]) -> None:
    from saccade_interventions.suggest import unknown

    if value not in (names := [str(choice.value) for choice in choices]):
        raise typer.BadParameter(f"{option}: {unknown('choice', value, names)}")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--seeds: {text!r} is no list of numbers like 0,1,2") from None
    if len(set(found)) != len(found):
        raise typer.BadParameter(f"--seeds: a seed occurs twice in {text!r}; name it once")
    return found
