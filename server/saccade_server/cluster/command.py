"""``saccade cluster``: its command line. Imports of Ray and torch wait until it runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import typer

from saccade_server.options import fail, log_to_stderr
from saccade_server.serve_command import FolderOrName, Model, ServedModelName
from saccade_server.serve_options.cluster import ClusterOptions
from saccade_server.serve_options.server import Choices, ServerOptions
from saccade_server.shell.commands import UsageError
from saccade_server.shell.grouped import grouped
from saccade_server.shell.model import check_model, chosen_model

EXTRA = "saccade cluster needs Ray: pip install 'saccade-server[ray]'"


@grouped
def cluster_command(
    ctx: typer.Context,
    cluster: ClusterOptions,
    options: ServerOptions,
    folder_or_name: FolderOrName = None,
    model: Model = None,
    served_model_name: ServedModelName = None,
) -> None:
    """Serve the API by replicas in a Ray cluster, one GPU each."""
    log_to_stderr(options.logs.log_level, options.logs.log_format, serving=True)
    try:
        if importlib.util.find_spec("ray") is None:
            raise ValueError(EXTRA)
        model = chosen_model(ctx, folder_or_name, model)
        choices = _choices(cluster, options, model, served_model_name)
        options.check()
    except (ValueError, OSError) as error:
        raise fail(error) from error
    from saccade_server.cluster.running import run

    raise typer.Exit(run(cluster, choices))


def parsed(arguments: Sequence[str]) -> tuple[ClusterOptions, Choices]:
    """What a command line says, of an address that is somebody else's to take.

    Raises:
        ValueError: an option is wrong; the message says which.
    """
    shell = typer.Typer(add_completion=False)

    @shell.command()
    @grouped
    def read(
        ctx: typer.Context,
        cluster: ClusterOptions,
        options: ServerOptions,
        folder_or_name: FolderOrName = None,
        model: Model = None,
        served_model_name: ServedModelName = None,
    ) -> tuple[ClusterOptions, Choices]:
        named = chosen_model(ctx, folder_or_name, model)
        return cluster, _choices(cluster, options, named, served_model_name)

    command = typer.main.get_command(shell)
    try:
        read_options: tuple[ClusterOptions, Choices] = command.main(
            list(arguments), "saccade cluster", standalone_mode=False
        )
    except UsageError as error:
        raise ValueError(error.format_message()) from None
    return read_options


def _choices(
    cluster: ClusterOptions, options: ServerOptions, model: str | None, name: str | None
) -> Choices:
    """What replicas are told, checked as far as one server can.

    Raises:
        ValueError, OSError: something of it cannot be.
    """
    check_model(model)
    cluster.check()
    choices = options.choices(model, name).absolute()
    if cluster.most > 1 and choices.settings["admin_keys"] and not choices.settings["artifacts"]:
        raise ValueError(
            "what is uploaded to one replica must be known to all: give --artifacts, a folder "
            "that all nodes share, or no --admin-key"
        )
    return choices
