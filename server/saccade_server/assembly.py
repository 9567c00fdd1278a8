"""What a server is put together of, whoever listens for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import FastAPI

from saccade_interventions.registry import Registry
from saccade_server.api.app import create_app
from saccade_server.api.artifact_store import ArtifactStore
from saccade_server.api.metrics.route import Collect, families_of
from saccade_server.api.reloading import keys_file, profiles_file
from saccade_server.api.traces.store import TraceStore
from saccade_server.config import ServerConfig
from saccade_server.engine.client import EngineClient
from saccade_server.models.prompt import PromptProcessor
from saccade_server.requests.profiles import Profile, load_profiles
from saccade_server.selftest import Findings


@dataclass(frozen=True)
class Assembly:
    """The parts that are read and checked before a model loads."""

    config: ServerConfig
    registry: Registry
    profiles: Mapping[str, Profile]

    @classmethod
    def begin(cls, config: ServerConfig) -> Assembly:
        """Read them, and try the folders.

        Raises:
            ProfileError: a profile is not valid.
            OSError: a folder cannot be used.
        """
        registry = Registry.discover()
        profiles = load_profiles(config.profiles, registry) if config.profiles else {}
        ArtifactStore(config.api.artifacts, config.api.max_artifacts_bytes).close()
        TraceStore(config.api.traces, config.api.max_stored_traces_bytes).close()
        return cls(config, registry, profiles)

    def app(
        self,
        engine: EngineClient,
        prompts: PromptProcessor,
        found: Findings,
        *,
        collect: Collect = families_of,
    ) -> FastAPI:
        """The application of a model that was loaded, and tested as far as ``found`` says.

        Args:
            collect: what /metrics says.

        Raises:
            ProfileError: the model cannot run one of the profiles.
            OSError: a folder cannot be used.
        """
        app = create_app(
            engine,
            prompts,
            self.registry,
            self.config.api,
            profiles=self.profiles,
            faults=found.faults,
            tested=found.tested,
            collect=collect,
        )
        if self.config.keys:
            app.state.reloadables.append(keys_file(self.config.keys, app.state.services))
        if self.config.profiles:
            file = profiles_file(self.config.profiles, app.state.services)
            app.state.reloadables.append(file)
        return app
