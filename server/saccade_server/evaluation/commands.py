"""``saccade eval``: its command line. Imports of torch and the server wait until a command runs."""

from __future__ import annotations

import asyncio
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

app = typer.Typer(
    name="eval",
    help="Measure what interventions do to answers about scenes whose content is known.",
    no_args_is_help=True,
)


@app.command("scenes")
def scenes_command(
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of the results; a rerun goes on there.")
    ] = Path("scenes"),
    settings: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="TOML or JSON; if absent all methods at defaults."
        ),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method; repeat for several.")
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
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1)] = 64,
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
    from saccade_server.evaluation.scenes import Scale
    from saccade_server.evaluation.terminal import Run, run_scenes

    log_to_stderr("warning")
    limits: dict[str, Any] = {"max_num_seqs": concurrency}
    run = Run(
        folder=out,
        settings=settings,
        methods=tuple(method or ()),
        scale=Scale(scenes, _numbers(seeds), validation if tune else 0),
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


@app.command("export-scenes")
def export_command(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the prompts and images.")],
    split: Annotated[
        str, typer.Option(help="validation, or one of clear, ordinary, counterfactual.")
    ] = "validation",
    questions: Annotated[
        str, typer.Option(help="exists, companion, describe, or absence (positive and negative).")
    ] = "exists",
    count: Annotated[int, typer.Option(min=1)] = 200,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write labelled prompts of the demo world, for saccade calibrate."""
    from saccade_server.demo.splits import Split
    from saccade_server.evaluation.export import Questions, export_scenes

    try:
        path = export_scenes(out, Split(split), Questions(questions), count, seed)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    typer.echo(path)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers like 0,1,2") from None
    if len(set(found)) != len(found):
        raise typer.BadParameter("a seed occurs twice")
    return found
