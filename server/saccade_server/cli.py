"""The ``saccade`` command. Options beat environment variables (SACCADE_...) and defaults.

Commands import what they need when they run: help must not wait for torch and transformers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from saccade_server.calibration import commands as calibrate_commands
from saccade_server.evaluation import commands as eval_commands
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
    name="saccade",
    help="Serve vision-language models with attention interventions, chosen per request.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(eval_commands.app)
app.add_typer(calibrate_commands.app)

FOR_ONE_ANSWER: dict[str, Any] = {"enforce_eager": True, "cache_tokens": 8192, "max_num_seqs": 4}
"""Limits of the commands that end with one answer: it does not repay the capture of graphs, and
another program may use the GPU. Some methods run a request as several sequences."""


@app.command("serve")
def serve_command(
    model: Model = None,
    host: Annotated[str, typer.Option(envvar="SACCADE_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="SACCADE_PORT", min=1, max=65535)] = 8000,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="Public name of the model.", envvar="SACCADE_SERVED_MODEL_NAME"),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key that clients must send; repeat for several. "
            "SACCADE_API_KEY holds one, or several with commas between."
        ),
    ] = None,
    admin_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key that opens the upload of artifacts; repeat for several. Without one nobody "
            "may upload. SACCADE_ADMIN_KEY holds one, or several with commas between."
        ),
    ] = None,
    artifacts: Artifacts = None,
    profiles: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="TOML file of named bundles of interventions.",
            envvar="SACCADE_PROFILES",
        ),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            help="Try every method on the model first, and offer those that show.",
            envvar="SACCADE_SELF_TEST",
        ),
    ] = True,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_model_len: MaxLen = None,
    max_num_seqs: Annotated[
        int, typer.Option(min=1, help="Sequences in one batch.", envvar="SACCADE_MAX_NUM_SEQS")
    ] = 64,
    max_batched_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens in one step; if absent 8192 on a GPU, 1024 on a CPU.",
            envvar="SACCADE_MAX_BATCHED_TOKENS",
        ),
    ] = None,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Size of the key-value cache; if absent what fits on a GPU, 65536 on a CPU.",
            envvar="SACCADE_CACHE_TOKENS",
        ),
    ] = None,
    gpu_memory_utilization: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Share of the GPU's memory for model, cache and the largest step; "
            "CUDA graphs come on top. Of no effect on a CPU.",
            envvar="SACCADE_GPU_MEMORY_UTILIZATION",
        ),
    ] = 0.9,
    enforce_eager: Annotated[
        bool,
        typer.Option(
            "--enforce-eager",
            help="No CUDA graphs: starts sooner, needs less memory, decodes slower.",
            envvar="SACCADE_ENFORCE_EAGER",
        ),
    ] = False,
    compile_layers: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Fuse the small operations of decoder layers with torch.compile: starts later; "
            "needs a C++ compiler on a CPU.",
            envvar="SACCADE_COMPILE",
        ),
    ] = False,
    prefix_caching: Annotated[
        bool, typer.Option(help="Share the keys and values of equal prefixes.")
    ] = True,
    threads: Threads = None,
    allow_image_urls: Annotated[
        bool,
        typer.Option(help="Fetch images from http(s) URLs.", envvar="SACCADE_ALLOW_IMAGE_URLS"),
    ] = False,
    allowed_media_domain: Annotated[
        list[str] | None, typer.Option(help="Fetch only from this host; repeat for several.")
    ] = None,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to finish requests in flight.")
    ] = 30.0,
    log_level: Annotated[str, typer.Option(envvar="SACCADE_LOG_LEVEL")] = "info",
    access_log: Annotated[bool, typer.Option(help="Log a line per request.")] = True,
) -> None:
    """Serve the OpenAI-compatible API."""
    # The imports below take seconds, and a container's first process ignores by default.
    signal.signal(signal.SIGTERM, _leave)
    from saccade_server.api.settings import ApiSettings
    from saccade_server.config import ServerConfig, engine_config, served_name
    from saccade_server.engine.client import EngineDeadError
    from saccade_server.serving import serve

    log_to_stderr(log_level)
    try:
        config = ServerConfig(
            host=host,
            port=port,
            engine=engine_config(
                model,
                device=device,
                dtype=dtype,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_batched_tokens=max_batched_tokens,
                cache_tokens=cache_tokens,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=enforce_eager,
                compile=compile_layers,
                prefix_caching=prefix_caching,
                threads=threads,
            ),
            api=ApiSettings(
                served_model_name=served_name(model, served_model_name),
                api_keys=_keys(api_key, "SACCADE_API_KEY"),
                admin_keys=_keys(admin_key, "SACCADE_ADMIN_KEY"),
                artifacts=artifacts,
                allow_image_urls=allow_image_urls,
                allowed_media_domains=tuple(allowed_media_domain or ()),
                shutdown_timeout=shutdown_timeout,
                access_log=access_log,
            ),
            profiles=profiles,
            self_test=self_test,
        )
        code = asyncio.run(serve(config))
    except (ValueError, OSError, EngineDeadError) as error:
        raise fail(error) from error
    raise typer.Exit(code)


@app.command("generate")
def generate_command(
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    image: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="Image file; repeat for several."),
    ] = None,
    intervention: Annotated[
        list[str] | None,
        typer.Option(help="method:field=value,field=value; repeat for several."),
    ] = None,
    model: Model = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    seed: Annotated[int | None, typer.Option()] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole answer as JSON.")
    ] = False,
    artifacts: Artifacts = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_model_len: MaxLen = None,
    threads: Threads = None,
) -> None:
    """Answer one question without a server; the receipt goes to standard error."""
    from saccade_interventions import shorthand
    from saccade_server.config import engine_config, served_name
    from saccade_server.oneshot import RequestRefused, generate, receipt_of, text_of

    log_to_stderr("warning")
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
        entries = [shorthand.parse(text) for text in intervention or ()]
        name = served_name(model, None)
        work = generate(config, name, prompt, image or (), entries, sampling, artifacts)
        answer = asyncio.run(work)
    except (ValueError, OSError, RequestRefused) as error:
        raise fail(error) from error
    if as_json:
        typer.echo(json.dumps(answer))
        return
    typer.echo(text_of(answer))
    if intervention:
        typer.echo(receipt_of(answer), err=True)


@app.command("demo")
def demo_command() -> None:
    """Ask the demo model about a sample image without and with VAR, side by side."""
    from saccade_server.config import engine_config
    from saccade_server.oneshot import RequestRefused, demo

    log_to_stderr("warning")
    try:
        asyncio.run(demo(engine_config(None, **FOR_ONE_ANSWER), Console()))
    except (ValueError, RequestRefused) as error:
        raise fail(error) from error


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
    from saccade_interventions.errors import InterventionError
    from saccade_interventions.registry import Registry

    registry = Registry.discover()
    if method is not None:
        try:
            typer.echo(json.dumps(registry.describe(method), indent=2))
        except InterventionError as error:
            raise fail(error) from error
        return
    from saccade_server.catalogue import catalogue, on_the_model

    log_to_stderr("error")
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
    """Entry point of the console script."""
    app()


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _keys(options: list[str] | None, variable: str) -> tuple[str, ...]:
    """Keys of the options, or else of the environment."""
    keys = options or os.environ.get(variable, "").split(",")
    if not options and keys == [""]:
        return ()
    if any(not key or key.split() != [key] for key in keys):
        raise typer.BadParameter("a key must not be empty or hold blanks")
    return tuple(keys)
