"""Options that several commands share, and how a command fails. Loads neither torch nor a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

Model = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub name; the embedded demo model if absent.", envvar="SACCADE_MODEL"
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", envvar="SACCADE_DEVICE")]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, bfloat16 or float16.", envvar="SACCADE_DTYPE")
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
        file_okay=False,
        help="Folder of artifacts; if absent a private one, gone when the command ends.",
        envvar="SACCADE_ARTIFACTS",
    ),
]
LogLevel = Annotated[
    str,
    typer.Option(help="debug, info, warning, error or critical.", envvar="SACCADE_LOG_LEVEL"),
]


def log_to_stderr(level: str) -> None:
    """Log from ``level`` on."""
    if level.upper() not in logging.getLevelNamesMapping():
        raise typer.BadParameter(f"unknown log level {level!r}")
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )


class Commands(TyperGroup):
    """Commands whose options are refused in this project's words instead of pydantic's."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError

            from saccade_interventions.wording import about

            if isinstance(error.__cause__, ValidationError):
                error.message = about("", error.__cause__.errors()[0])
            raise


def fail(error: Exception, code: int = 2) -> typer.Exit:
    """Say what was wrong in one sentence; raise what this returns."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    typer.echo(f"saccade: {' '.join(message.split())}", err=True)
    return typer.Exit(code)
