"""The ``saccade`` command. Options beat environment variables (SACCADE_...) and defaults.

Commands import what they need when they run: help must not wait for torch and transformers.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from saccade_server import __version__
from saccade_server.calibration import commands as calibrate_commands
from saccade_server.cluster.command import cluster_command
from saccade_server.evaluation import commands as eval_commands
from saccade_server.exit_codes import EPILOG
from saccade_server.import_command import import_command
from saccade_server.inspect_command import inspect_command
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
from saccade_server.serve_command import serve_command
from saccade_server.shell.commands import Commands
from saccade_server.shell.model import check_model
from saccade_server.shell.paths import readable

app = typer.Typer(
    name="saccade",
    cls=Commands,
    help="Serve vision-language models with attention interventions, chosen per request.",
    # Tables of four columns leave no room for help in a terminal of 80.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(eval_commands.app)
app.add_typer(calibrate_commands.app)

FOR_ONE_ANSWER: dict[str, Any] = {"enforce_eager": True, "cache_tokens": 8192, "max_num_seqs": 4}
"""Limits of the commands that end with one answer: it does not repay the capture of graphs, and
another program may use the GPU. Some methods run a request as several sequences."""


LEAVE_SECONDS = 3.0
"""What threads that nobody waits for, such as a decoder in a large image, get to end."""

app.command("serve", epilog=EPILOG)(serve_command)
app.command("cluster", epilog=EPILOG, short_help="Serve by replicas in a Ray cluster.")(
    cluster_command
)
app.command("import", short_help="Make an artifact of another program's vectors.")(import_command)
app.command("inspect", short_help="Score an answer with a detector.")(inspect_command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"saccade {__version__}")
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of no command."""


@app.command("generate", short_help="Answer one question without a server.")
def generate_command(
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What to ask.")],
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", callback=readable, help="Image file; repeat for several."),
    ] = None,
    intervention: Annotated[
        list[str] | None,
        typer.Option(metavar="ENTRY", help="method:field=value,field=value; repeat for several."),
    ] = None,
    model: Model = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that the answer may have.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")
    ] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(min=-(2**63), max=2**63 - 1, help="Of the draws, with a temperature."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole answer as JSON.")
    ] = False,
    artifacts: Artifacts = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_model_len: MaxLen = None,
    threads: Threads = None,
) -> None:
    """Answer one question without a server; reasoning and receipt go to standard error."""
    from saccade_server.shell.entries import in_options, read_entries
    from saccade_server.shell.images import check_images

    log_to_stderr("warning")
    try:
        check_model(model)
        entries = read_entries(intervention or (), image or (), artifacts)
        check_images(image or ())
    except (ValueError, OSError) as error:
        raise fail(error) from error
    from saccade_server.config import engine_config, served_name
    from saccade_server.oneshot import RequestRefused, generate, reasoning_of, text_of
    from saccade_server.receipt_line import receipt_lines

    sampling: dict[str, Any] = {"temperature": temperature}
    if max_tokens is not None:
        sampling["max_tokens"] = max_tokens
    if seed is not None:
        sampling["seed"] = seed
    try:
        config = engine_config(
            model,
            device=device,
            dtype=dtype,
            max_model_len=max_model_len,
            threads=threads,
            **FOR_ONE_ANSWER,
        )
        name = served_name(model, None)
        work = generate(config, name, prompt, image or (), entries, sampling, artifacts)
        answer = asyncio.run(work)
    except RequestRefused as error:
        said = in_options(error.message, error.param, entries, image or ())
        raise fail(ValueError(said)) from error
    except (ValueError, OSError) as error:
        raise fail(error) from error
    if as_json:
        typer.echo(json.dumps(answer))
        return
    if reasoning_of(answer):
        typer.echo(reasoning_of(answer), err=True)
    typer.echo(text_of(answer))
    for line in receipt_lines(answer):
        typer.echo(line, err=True)


@app.command("demo", short_help="Compare answers with and without interventions.")
def demo_command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print answers, receipts and rates as JSON.")
    ] = False,
) -> None:
    """Ask the demo model about one image, plain and with methods, and say how they do on others."""
    from saccade_server.config import engine_config
    from saccade_server.demonstration import demonstrate
    from saccade_server.demonstration_view import show
    from saccade_server.oneshot import RequestRefused

    log_to_stderr("warning")
    try:
        document = asyncio.run(demonstrate(engine_config(None, **FOR_ONE_ANSWER)))
    except (ValueError, OSError, RequestRefused) as error:
        raise fail(error) from error
    if as_json:
        typer.echo(json.dumps(document, indent=1))
    else:
        show(document, Console(highlight=False))


@app.command("methods")
def methods_command(
    method: Annotated[str | None, typer.Argument(help="Show this method's parameters.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Try each on the model, as a server does at its start.")
    ] = False,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """List the interventions, or describe one as JSON."""
    from saccade_interventions.registry import Registry

    try:
        registry = Registry.discover()
        if method is not None:
            typer.echo(json.dumps(registry.describe(method), indent=2))
            return
    except ValueError as error:
        raise fail(error) from error
    log_to_stderr("error")
    try:
        check_model(model if check else None)
    except ValueError as error:
        raise fail(error) from error
    from saccade_server.catalogue import catalogue, on_the_model

    if not check:
        Console().print(catalogue([registry.describe(name) for name in registry.methods]))
        return
    from saccade_server.config import engine_config

    try:
        config = engine_config(model, device=device, dtype=dtype, threads=threads, **FOR_ONE_ANSWER)
        listing = asyncio.run(on_the_model(config))
    except (ValueError, OSError) as error:
        raise fail(error) from error
    Console().print(catalogue(listing))


def main() -> None:
    """Entry point of the console script; ends the process whatever threads are still busy."""
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        hurry = threading.Timer(LEAVE_SECONDS, os._exit, (code,))
        hurry.daemon = True
        hurry.start()
        raise
