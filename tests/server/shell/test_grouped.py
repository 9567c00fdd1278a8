"""Commands whose parameters are groups of options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from saccade_server.shell.grouped import grouped


@dataclass(frozen=True)
class Sizes:
    """A group."""

    rows: Annotated[int, typer.Option(min=1, help="Rows.")] = 3
    wide: Annotated[bool, typer.Option(help="Wide.")] = False


@dataclass(frozen=True)
class Again:
    """A group with an option of another's name."""

    rows: Annotated[int, typer.Option(help="Rows.")] = 1


@dataclass(frozen=True)
class Bare:
    """A group whose option has no default."""

    rows: Annotated[int, typer.Option(help="Rows.")]


def run(*arguments: str) -> tuple[Any, ...]:
    app = typer.Typer()
    seen: list[Any] = []

    @app.command()
    @grouped
    def command(
        ctx: typer.Context,
        sizes: Sizes,
        name: Annotated[str, typer.Argument()] = "x",
        more: Annotated[int, typer.Option()] = 0,
    ) -> None:
        seen.extend((type(ctx).__name__, sizes, name, more))

    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return tuple(seen)


def test_fields_of_a_group_are_options_beside_others() -> None:
    assert run()[1:] == (Sizes(), "x", 0)
    given = run("name", "--rows", "7", "--wide", "--more", "2")
    assert given[1:] == (Sizes(7, True), "name", 2)


def test_a_value_is_checked_as_any_option_is() -> None:
    with pytest.raises(AssertionError, match="rows"):
        run("--rows", "0")


def test_two_options_of_one_name_are_refused() -> None:
    def command(sizes: Sizes, again: Again) -> None: ...

    with pytest.raises(TypeError, match="one name"):
        grouped(command)


def test_an_option_without_a_default_is_refused() -> None:
    def command(bare: Bare) -> None: ...

    with pytest.raises(TypeError, match="no default"):
        grouped(command)
