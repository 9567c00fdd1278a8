"""Who may ask for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from saccade_server.serve_options.group import OptionGroup, keys


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
            help="Key that opens the upload of artifacts; repeat for several. Without one nobody "
            "may upload. SACCADE_ADMIN_KEY holds one, or several with commas between.",
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
            typer.BadParameter: one of them is empty or holds blanks.
        """
        return {
            "api_keys": keys(self.api_key, "SACCADE_API_KEY"),
            "admin_keys": keys(self.admin_key, "SACCADE_ADMIN_KEY"),
            "open_metrics": self.open_metrics,
        }
