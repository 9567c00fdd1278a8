"""Where the server listens, and which names and pages it answers to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from saccade_server.serve_options.group import OptionGroup, listed


@dataclass(frozen=True)
class ListenOptions(OptionGroup):
    """Address and port, Hosts, origins."""

    host: Annotated[
        str,
        typer.Option(
            help="Address, or name, to listen on; 0.0.0.0 is every one of this machine.",
            envvar="SACCADE_HOST",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port to listen on.", envvar="SACCADE_PORT")
    ] = 8000
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Without --api-key, answer to this Host too, beside IP addresses, localhost and "
            "this machine's name; '*.example.com' is every name below one, '*' any. Repeat for "
            "several. SACCADE_ALLOWED_HOST holds one, or several with commas between.",
        ),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let browser pages of this origin (https://app.example.com) ask and read answers; "
            "'*': of any. Repeat for several. "
            "SACCADE_CORS_ORIGIN holds one, or several with commas between.",
        ),
    ] = None

    def check(self) -> None:
        """Try the address.

        Raises:
            ListenError: it cannot be had.
        """
        from saccade_server.listening import release, take

        release(take(self.host, self.port))

    def settings(self) -> dict[str, Any]:
        """Hosts and origins, checked."""
        from saccade_server.api.layers.cors import check_origins
        from saccade_server.api.layers.hosts import check_patterns, given_name

        names = [*listed(self.allowed_host, "SACCADE_ALLOWED_HOST"), *given_name(self.host)]
        return {
            "allowed_hosts": check_patterns(names),
            "cors_origins": check_origins(listed(self.cors_origin, "SACCADE_CORS_ORIGIN")),
        }
