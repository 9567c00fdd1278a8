"""All that a command line says of a server, wherever it is going to run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade_server.logs.formats import LogFormat
from saccade_server.serve_options.access import AccessOptions
from saccade_server.serve_options.engine import EngineOptions
from saccade_server.serve_options.group import OptionGroup
from saccade_server.serve_options.images import ImageOptions
from saccade_server.serve_options.limits import LimitOptions, OnHang
from saccade_server.serve_options.listening import ListenOptions
from saccade_server.serve_options.logs import LogOptions
from saccade_server.serve_options.methods import MethodOptions
from saccade_server.serve_options.replicas import ReplicaOptions
from saccade_server.serve_options.spans import SpanOptions
from saccade_server.serve_options.traces import TraceOptions

if TYPE_CHECKING:
    from saccade_server.config import ServerConfig


@dataclass(frozen=True)
class ServerOptions(OptionGroup):
    """The groups of options that every command has that serves, in the order of its help."""

    listening: ListenOptions = field(default_factory=ListenOptions)
    access: AccessOptions = field(default_factory=AccessOptions)
    methods: MethodOptions = field(default_factory=MethodOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    images: ImageOptions = field(default_factory=ImageOptions)
    traces: TraceOptions = field(default_factory=TraceOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    replicas: ReplicaOptions = field(default_factory=ReplicaOptions)
    logs: LogOptions = field(default_factory=LogOptions)
    spans: SpanOptions = field(default_factory=SpanOptions)

    @property
    def groups(self) -> tuple[OptionGroup, ...]:
        """Every one of them."""
        return tuple(getattr(self, each.name) for each in fields(self))

    def check(self) -> None:
        """Refuse what can be refused before torch is imported.

        Raises:
            ValueError, OSError: an option, a folder, a file or the address cannot be used.
        """
        for group in self.groups:
            group.check()

    def settings(self) -> dict[str, Any]:
        """What all groups say of the API, checked."""
        return {name: value for group in self.groups for name, value in group.settings().items()}

    def choices(self, model: str | None, served_model_name: str | None) -> Choices:
        """What was decided, for a server of ``model``.

        Raises:
            ValueError: as by :meth:`settings`.
        """
        server = {
            "host": self.listening.host,
            "port": self.listening.port,
            "profiles": self.methods.profiles,
            "keys": self.access.key_file,
            "self_test": self.methods.self_test,
            "self_test_seconds": self.methods.self_test_timeout,
            "exit_on_hang": self.limits.on_hang is OnHang.EXIT,
        }
        settings = self.settings()
        return Choices(
            model,
            served_model_name,
            self.engine.choices(),
            settings,
            server,
            self.logs.log_level,
            self.logs.log_format,
        )


@dataclass(frozen=True)
class Choices:
    """Plain values that can travel to the machine where the server is going to run.

    ``engine`` is for :func:`~saccade_server.config.engine_config`, ``settings`` are fields of
    :class:`~saccade_server.api.settings.ApiSettings`, ``server`` the other fields of
    :class:`~saccade_server.config.ServerConfig`. The names of keys, files and folders are in them.
    """

    model: str | None
    served_model_name: str | None
    engine: dict[str, Any]
    settings: dict[str, Any] = field(repr=False)
    server: dict[str, Any]
    log_level: str = "info"
    log_format: LogFormat = LogFormat.TEXT

    def absolute(self) -> Choices:
        """The same with paths that mean the same wherever they are read."""
        is_folder = self.model is not None and Path(self.model).is_dir()
        return replace(
            self,
            model=str(Path(str(self.model)).absolute()) if is_folder else self.model,
            served_model_name=self.served_model_name
            or (Path(str(self.model)).absolute().name if is_folder else None),
            settings={name: _absolute(value) for name, value in self.settings.items()},
            server={name: _absolute(value) for name, value in self.server.items()},
        )

    def config(self) -> ServerConfig:
        """The configuration of a server on this machine, its devices looked for; imports torch.

        Raises:
            ValueError: a limit makes no sense, or the device is not there.
        """
        from saccade_server.api.settings import ApiSettings
        from saccade_server.config import ServerConfig, engine_config, served_name

        return ServerConfig(
            engine=engine_config(self.model, **self.engine),
            api=ApiSettings(
                served_model_name=served_name(self.model, self.served_model_name), **self.settings
            ),
            **self.server,
        )


def _absolute(value: Any) -> Any:
    return value.absolute() if isinstance(value, Path) else value
