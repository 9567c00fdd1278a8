"""Who may ask for what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade_server.serve_options.group import OptionGroup, keys
from saccade_server.shell.paths import readable


@dataclass(frozen=True)
class AccessOptions(OptionGroup):
    """Keys."""

    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Key that clients must send; repeat for several. "
            "SACCADE_API_KEY holds one, or several with commas between.",
        ),
    ] = None
    admin_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Key that opens the upload and deletion of artifacts; repeat for several. Without "
            "one nobody may. SACCADE_ADMIN_KEY holds one, or several with commas between.",
        ),
    ] = None
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            callback=readable,
            help="TOML file of keys with names, priorities and limits, beside the others.",
            envvar="SACCADE_KEYS",
        ),
    ] = None
    open_metrics: Annotated[
        bool,
        typer.Option(
            help="Let anybody read /metrics, without a key and by any Host.",
            envvar="SACCADE_OPEN_METRICS",
        ),
    ] = False

    def settings(self) -> dict[str, Any]:
        """The keys.

        Raises:
            KeyFileError: the file cannot be used, or a key is there twice.
            typer.BadParameter: one of them is empty or holds blanks.
        """
        from saccade_server.api.access.key_file import check_distinct, load_keys
        from saccade_server.api.access.keys import plain_keys

        users = keys(self.api_key, "SACCADE_API_KEY")
        admins = keys(self.admin_key, "SACCADE_ADMIN_KEY")
        named = () if self.key_file is None else load_keys(self.key_file)
        if named:
            check_distinct((*plain_keys(users, admins), *named))
        return {
            "api_keys": users,
            "admin_keys": admins,
            "keys": named,
            "open_metrics": self.open_metrics,
        }
