"""``saccade serve``: its command line. Imports of torch and the server wait until it runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import typer

from saccade_server.exit_codes import ExitCode
from saccade_server.options import fail, log_to_stderr
from saccade_server.serve_options.access import AccessOptions
from saccade_server.serve_options.engine import EngineOptions
from saccade_server.serve_options.group import OptionGroup
from saccade_server.serve_options.images import ImageOptions
from saccade_server.serve_options.limits import LimitOptions, OnHang
from saccade_server.serve_options.listening import ListenOptions
from saccade_server.serve_options.logs import LogOptions
from saccade_server.serve_options.methods import MethodOptions
from saccade_server.serve_options.traces import TraceOptions
from saccade_server.shell.grouped import grouped
from saccade_server.shell.model import check_model, chosen_model
from saccade_server.signals import heeded


@grouped
def serve_command(
    ctx: typer.Context,
    listening: ListenOptions,
    access: AccessOptions,
    methods: MethodOptions,
    engine: EngineOptions,
    images: ImageOptions,
    traces: TraceOptions,
    limits: LimitOptions,
    logs: LogOptions,
    folder_or_name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Folder or hub name; the embedded demo model if absent.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The same as MODEL.", envvar="SACCADE_MODEL"),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="Public name of the model.", envvar="SACCADE_SERVED_MODEL_NAME"),
    ] = None,
) -> None:
    """Serve the OpenAI-compatible API."""
    # The imports below take seconds, and a container's first process ignores by default.
    _answer_signals(_leave)
    log_to_stderr(logs.log_level)
    model = chosen_model(ctx, folder_or_name, model)
    groups = (listening, access, methods, engine, images, traces, limits, logs)
    try:
        check_model(model)
        settings = _checked(groups)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    from saccade_server.api.settings import ApiSettings
    from saccade_server.config import ServerConfig, engine_config, served_name
    from saccade_server.loading import ModelLoadError
    from saccade_server.serving import serve

    try:
        name = served_name(model, served_model_name)
        config = ServerConfig(
            host=listening.host,
            port=listening.port,
            engine=engine_config(model, **engine.choices()),
            api=ApiSettings(served_model_name=name, **settings),
            profiles=methods.profiles,
            self_test=methods.self_test,
            self_test_seconds=methods.self_test_timeout,
            exit_on_hang=limits.on_hang is OnHang.EXIT,
        )
        code = asyncio.run(serve(config))
    except ModelLoadError as error:
        raise fail(error, ExitCode.MODEL) from error
    except (ValueError, OSError) as error:
        raise fail(error) from error
    # With its loop went the loop's handlers; one signal more must not change the exit code.
    _answer_signals(signal.SIG_IGN)
    raise typer.Exit(code)


def _checked(groups: tuple[OptionGroup, ...]) -> dict[str, Any]:
    """What all groups say of the API, refused as far as it can be before torch is imported.

    Raises:
        ValueError, OSError: an option, a folder, a file or the address cannot be used.
    """
    settings: dict[str, Any] = {}
    for group in groups:
        group.check()
        settings |= group.settings()
    return settings


def _answer_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in heeded():
        signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
