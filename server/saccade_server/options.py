"""Options that several commands share, and how a command fails. Loads neither torch nor a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from saccade_server.exit_codes import ExitCode
from saccade_server.logs.formats import LogFormat
from saccade_server.logs.setup import LogSettings, as_json, logger, set_up
from saccade_server.shell.paths import folder

DEVICE = re.compile(r"auto|cpu|cuda(?::([0-9]{1,4}))?")
LEVELS = ("debug", "info", "warning", "error", "critical")
DTYPES = ("auto", "float32", "bfloat16", "float16")

Model = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub name; the embedded demo model if absent.", envvar="SACCADE_MODEL"
    ),
]


def _device(name: str) -> str:
    if not DEVICE.fullmatch(name):
        raise typer.BadParameter(f"there is no device {name!r}; choose auto, cpu, cuda or cuda:N")
    return name


def _dtype(name: str) -> str:
    if name not in DTYPES:
        choices = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
        raise typer.BadParameter(f"there is no type {name!r} here; choose {choices}")
    return name


Device = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda or cuda:N.", envvar="SACCADE_DEVICE", callback=_device),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto, float32, bfloat16 or float16.", envvar="SACCADE_DTYPE", callback=_dtype
    ),
]
MaxLen = Annotated[
    int | None,
    typer.Option(min=1, help="Longest prompt and answer together.", envvar="SACCADE_MAX_MODEL_LEN"),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="CPU threads of the engine.", envvar="SACCADE_THREADS"),
]
Artifacts = Annotated[
    Path | None,
    typer.Option(
        callback=folder,
        help="Folder of artifacts; if absent a private one, gone when the command ends.",
        envvar="SACCADE_ARTIFACTS",
    ),
]
LogLevel = Annotated[
    str,
    typer.Option(help="debug, info, warning, error or critical.", envvar="SACCADE_LOG_LEVEL"),
]


def log_to_stderr(level: str, form: LogFormat = LogFormat.TEXT, *, serving: bool = False) -> None:
    """Log from ``level`` on.

    Args:
        form: how records look.
        serving: requests of others are answered: nothing of theirs is to be written, whatever ends.
    """
    if level.lower() not in LEVELS:
        from saccade_interventions.suggest import unknown

        raise typer.BadParameter(f"--log-level: {unknown('level', level, LEVELS)}")
    set_up(LogSettings(level.upper(), form), words=not serving, surprises=serving)


def fail(error: Exception, code: ExitCode | None = None) -> typer.Exit:
    """Say what was wrong in one sentence; raise what this returns.

    The code is ``code``, or what the error says: the model cannot be loaded, or else usage.
    """
    from saccade_server.models.folder import UnsupportedModelError

    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if as_json():
        logger.critical("%s", message)
    else:
        typer.echo(f"saccade: {' '.join(message.split())}", err=True)
    if code is None:
        code = ExitCode.MODEL if isinstance(error, UnsupportedModelError) else ExitCode.USAGE
    return typer.Exit(code)
