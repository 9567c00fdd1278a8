"""What requests may name: artifacts and profiles; and the trial of every method before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade_server.options import Artifacts
from saccade_server.serve_options.group import OptionGroup
from saccade_server.shell.paths import readable


@dataclass(frozen=True)
class MethodOptions(OptionGroup):
    """Artifacts, profiles, the self-test."""

    artifacts: Artifacts = None
    artifact_ttl: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=60,
            help="Artifacts that no request has used for so long are deleted, but for those that a "
            "profile names. If absent they stay.",
            envvar="SACCADE_ARTIFACT_TTL",
        ),
    ] = None
    profiles: Annotated[
        Path | None,
        typer.Option(
            callback=readable,
            help="TOML file of named bundles of interventions. SIGHUP has it read again; it counts "
            "if all of it is right.",
            envvar="SACCADE_PROFILES",
        ),
    ] = None
    default_profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Profile of requests that name neither one nor interventions; [] opts out.",
            envvar="SACCADE_DEFAULT_PROFILE",
        ),
    ] = None
    self_test: Annotated[
        bool,
        typer.Option(
            help="Try every method on the model first, and offer those that show.",
            envvar="SACCADE_SELF_TEST",
        ),
    ] = True
    self_test_timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds for the self-test; methods that it has not come to by then are offered "
            "untested, and the log names them. If absent 120 on a GPU, 30 on a CPU.",
            envvar="SACCADE_SELF_TEST_TIMEOUT",
        ),
    ] = None

    def check(self) -> None:
        """Try the file and the folder, and what installed packages offer.

        Raises:
            OSError: the folder cannot be used.
            PluginError: an installed package offers a method that cannot run.
            ProfileError: the file of profiles is not usable.
        """
        from saccade_interventions.registry import Registry
        from saccade_server.api.artifact_store import ArtifactStore
        from saccade_server.requests.profiles import check_default, load_profiles

        registry = Registry.discover()
        profiles = load_profiles(self.profiles, registry) if self.profiles else {}
        if self.default_profile and self.profiles is None:
            raise typer.BadParameter("--default-profile needs --profiles, the file that has it")
        check_default(self.default_profile or None, profiles)
        if self.artifacts is not None:
            ArtifactStore(self.artifacts, 0).close()

    def settings(self) -> dict[str, Any]:
        """The folder of artifacts, how long they stay unused, and the default profile."""
        return {
            "artifacts": self.artifacts,
            "artifact_ttl": self.artifact_ttl,
            "default_profile": self.default_profile or None,
        }
