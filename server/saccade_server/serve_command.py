"""``saccade serve``: its command line. Imports of torch and the server wait until it runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType
from typing import Annotated

import typer

from saccade_server.exit_codes import ExitCode
from saccade_server.options import fail, log_to_stderr
from saccade_server.serve_options.server import ServerOptions
from saccade_server.shell.grouped import grouped
from saccade_server.shell.model import check_model, chosen_model
from saccade_server.signals import Terminal, heeded

FolderOrName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="Folder or hub name; the embedded demo model if absent.",
    ),
]
Model = Annotated[str | None, typer.Option(help="The same as MODEL.", envvar="SACCADE_MODEL")]
ServedModelName = Annotated[
    str | None,
    typer.Option(help="Public name of the model.", envvar="SACCADE_SERVED_MODEL_NAME"),
]


@grouped
def serve_command(
    ctx: typer.Context,
    options: ServerOptions,
    folder_or_name: FolderOrName = None,
    model: Model = None,
    served_model_name: ServedModelName = None,
) -> None:
    """Serve the OpenAI-compatible API."""
    # The imports below take seconds, and a container's first process ignores by default.
    _answer_signals(_leaving(Terminal()))
    log_to_stderr(options.logs.log_level, options.logs.log_format, serving=True)
    model = chosen_model(ctx, folder_or_name, model)
    try:
        check_model(model)
        options.check()
        choices = options.choices(model, served_model_name)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    from saccade_server.loading import ModelLoadError
    from saccade_server.serving import serve

    try:
        code = asyncio.run(serve(choices.config()))
    except ModelLoadError as error:
        raise fail(error, ExitCode.MODEL) from error
    except (ValueError, OSError) as error:
        raise fail(error) from error
    # With its loop went the loop's handlers; one signal more must not change the exit code.
    _answer_signals(signal.SIG_IGN)
    raise typer.Exit(code)


def _answer_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in heeded():
        signal.signal(number, handler)


def _leaving(terminal: Terminal) -> Callable[[int, FrameType | None], None]:
    """Ends the process; a hangup for the sake of files says nothing before they were read."""

    def leave(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGHUP or terminal.is_gone:
            raise SystemExit(0)

    return leave
