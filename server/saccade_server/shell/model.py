"""``--model``: a folder that is no model's, or a name that no hub has, ends a command at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from saccade_server.models.folder import UnsupportedModelError, check_folder, is_local


def check_model(model: str | None) -> None:
    """Refuse what cannot be a model, as far as names and small files tell.

    Raises:
        UnsupportedModelError: with the reason and what helps.
        BadParameter: it is empty.
    """
    from saccade_server.shell.paths import meant

    if model is None:
        return
    if not model.strip():
        raise typer.BadParameter("--model is empty; name a folder or a model on the hub")
    path = Path(model)
    if is_local(model):
        if not path.exists():
            raise UnsupportedModelError(f"{model}: there is no such folder; {meant(path)}")
        check_folder(path)
    else:
        from saccade_server.models.hub import check_hub

        check_hub(model)


def chosen_model(ctx: Any, argument: str | None, option: str | None) -> str | None:
    """The model of ``saccade serve MODEL``, or of ``--model``, or of SACCADE_MODEL.

    Raises:
        BadParameter: the command line names two.
    """
    if argument is None or argument == option:
        return option
    source = ctx.get_parameter_source("model")
    if option is not None and source is not None and source.name != "ENVIRONMENT":
        raise typer.BadParameter(
            f"two models are named, {argument} and --model {option}; name one of them"
        )
    return argument
