"""What a server is to be that stands behind one address with others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from saccade_server.serve_options.group import OptionGroup


@dataclass(frozen=True)
class ReplicaOptions(OptionGroup):
    """The deployment."""

    expect_deployment: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST|FILE",
            help="Serve only as a replica of this deployment: the digest that another one shows at "
            "/version, or a file of what it answers at /v1/deployment; then what differs is said.",
            envvar="SACCADE_EXPECT_DEPLOYMENT",
        ),
    ] = None

    def check(self) -> None:
        """Read what is expected.

        Raises:
            DeploymentError: it is no digest, and no file of one.
        """
        from saccade_server.api.expected import Expected

        if self.expect_deployment is not None:
            Expected.read(self.expect_deployment)

    def settings(self) -> dict[str, Any]:
        """What is expected, as it was given."""
        return {"expected_deployment": self.expect_deployment}
