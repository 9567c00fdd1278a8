"""A group of commands, and how it refuses a command line: in one sentence, with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import typer
from typer.core import TyperGroup

from saccade_server.exit_codes import ExitCode

UsageError: Any = typer.BadParameter.__mro__[1]
"""typer's base of what is wrong with a command line; it has no public name there."""


class Commands(TyperGroup):
    """Commands whose refusals are this project's."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and end the process, if ``standalone_mode``."""
        run = partial(
            super().main, args, prog_name, complete_var, False, windows_expand_args, **extra
        )
        if not standalone_mode:
            return run()
        try:
            code = run()
        except UsageError as error:
            typer.echo(f"saccade: {sentence(error)}", err=True)
            sys.exit(error.exit_code)
        except typer.Abort:
            sys.exit(ExitCode.FAILED)
        sys.exit(code if isinstance(code, int) else ExitCode.STOPPED)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Without a command, show what there is."""
        if not args:
            typer.echo(ctx.get_help(), err=True)
            raise typer.Exit(ExitCode.USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is named first."""
        from saccade_interventions.suggest import unknown

        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise UsageError(unknown("command", name, self.commands), ctx)
        return super().resolve_command(ctx, args)


def sentence(error: Any) -> str:
    """What is wrong with a command line, and what to do about it."""
    from pydantic import ValidationError

    from saccade_interventions.errors import brief
    from saccade_interventions.wording import about

    ctx, param = error.ctx, getattr(error, "param", None)
    help_says = f"{ctx.command_path} --help says what there is" if ctx else "--help says more"
    if hasattr(error, "possibilities"):
        return _unknown_option(error, help_says)
    if param is None and isinstance(error, typer.BadParameter):
        return str(error.message)
    if param is None:
        message = _plain(error.message)
        return message if "; " in message else f"{message}; {help_says}"
    name = _given_as(param, ctx)
    if isinstance(error.__cause__, ValidationError):
        wrong = error.__cause__.errors()[0]
        said, given = about(name, wrong).rstrip("."), str(wrong["input"])
        return said if repr(given) in said else f"{said}; got {brief(given)}"
    if type(error).__name__ == "MissingParameter":
        return f"{name} is missing; {help_says}"
    return f"{name}: {_plain(error.message)}"


def _unknown_option(error: Any, help_says: str) -> str:
    from saccade_interventions.errors import brief
    from saccade_interventions.suggest import nearest

    name = error.option_name
    params = error.ctx.command.get_params(error.ctx) if error.ctx else ()
    known = [option for param in params for option in (*param.opts, *param.secondary_opts)]
    near = nearest(name, [option for option in known if option.startswith("--")])
    meant = f"did you mean {' or '.join(near)}?" if near else help_says
    command = error.ctx.command_path.partition(" ")[2] if error.ctx else ""
    where = f"{command} has" if command else "there is"
    return f"{where} no option {brief(name)[1:-1]}; {meant}"


def _given_as(param: Any, ctx: Any) -> str:
    """The option, argument or variable that a value came from."""
    source = ctx.get_parameter_source(param.name) if ctx else None
    if source is not None and source.name == "ENVIRONMENT" and isinstance(param.envvar, str):
        return str(param.envvar)
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    return str(max(param.opts, key=len))


def _plain(message: str) -> str:
    """A sentence of typer's as the end of one of ours."""
    words = " ".join(message.split()).rstrip(".")
    return words[:1].lower() + words[1:] if words[1:2].islower() else words
