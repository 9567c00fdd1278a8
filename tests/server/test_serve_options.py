"""The options of ``saccade serve``, as far as the server's configuration."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from saccade_server.api.settings import MIB, ApiSettings
from saccade_server.cli import app
from saccade_server.config import ServerConfig, engine_config
from saccade_server.listening import reached_from_outside, release, take
from saccade_server.serve_options.listening import ListenOptions
from saccade_server.serving import greeting
from saccade_server.signals import heeded


def _quiet(*given: object, **more: object) -> None:
    pass


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """The command answers signals of the process that it runs in."""
    before = {number: signal.getsignal(number) for number in heeded()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run ``saccade serve`` up to its configuration."""

    def run(*options: str, **environment: str) -> ServerConfig:
        made: list[ServerConfig] = []

        async def serve(config: ServerConfig) -> int:
            made.append(config)
            return 0

        monkeypatch.setattr("saccade_server.serving.serve", serve)
        monkeypatch.setattr("saccade_server.serve_command.log_to_stderr", _quiet)
        monkeypatch.setattr(ListenOptions, "check", lambda options: None)
        result = CliRunner().invoke(app, ["serve", *options], env=environment)
        assert result.exit_code == 0, result.output
        return made[0]

    return run


def test_a_signal_to_a_server_that_has_ended_changes_nothing(configured: Any) -> None:
    answered = heeded()
    configured()
    assert {signal.getsignal(number) for number in answered} == {signal.SIG_IGN}


def test_hosts_and_origins(configured: Any) -> None:
    api = configured().api
    assert (api.allowed_hosts, api.cors_origins) == ((), ())
    api = configured(
        "--allowed-host", "GPU.lan", "--allowed-host", "*.example.com",
        "--cors-origin", "http://localhost:5173", "--host", "box.lan",
    ).api  # fmt: skip
    assert api.allowed_hosts == ("gpu.lan", "*.example.com", "box.lan")
    assert api.cors_origins == ("http://localhost:5173",)


def test_hosts_and_origins_of_the_environment(configured: Any) -> None:
    given = {"SACCADE_ALLOWED_HOST": "a.lan,b.lan", "SACCADE_CORS_ORIGIN": "*"}
    api = configured(**given).api
    assert (api.allowed_hosts, api.cors_origins) == (("a.lan", "b.lan"), ("*",))
    assert configured("--allowed-host", "c.lan", **given).api.allowed_hosts == ("c.lan",)


def test_limits_and_times(configured: Any) -> None:
    api = configured(
        "--max-connections", "7", "--max-requests", "5", "--body-memory", "3",
        "--header-timeout", "1.5", "--keep-alive-timeout", "65",
    ).api  # fmt: skip
    assert (api.max_connections, api.max_requests, api.max_bodies_bytes) == (7, 5, 3 * 2**20)
    assert (api.header_timeout, api.keep_alive_timeout) == (1.5, 65)
    assert configured(SACCADE_MAX_CONNECTIONS="9").api.max_connections == 9


@pytest.mark.parametrize(
    "options",
    [
        ("--allowed-host", "http://x"),
        ("--cors-origin", "localhost:3000"),
        ("--allowed-media-domain", "https://images.example"),
        ("--allowed-media-domain", "*.images.example"),
    ],
)
def test_what_would_match_nothing_is_refused_before_anything_loads(
    options: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ListenOptions, "check", lambda options: None)  # its port may be in use
    result = CliRunner().invoke(app, ["serve", *options])
    assert result.exit_code != 0
    assert options[0] in result.output


def test_media_domains(configured: Any) -> None:
    given = {"SACCADE_ALLOWED_MEDIA_DOMAIN": "A.example, b.example."}
    assert configured(**given).api.allowed_media_domains == ("a.example", "b.example")
    api = configured("--allowed-media-domain", "C.example", **given).api
    assert api.allowed_media_domains == ("c.example",)


def test_every_option_is_explained_and_has_a_variable() -> None:
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    for option in command.params:
        assert option.help, option.opts
        if option.param_type_name == "option":
            assert "SACCADE_" in (option.envvar or option.help), option.opts


def test_an_open_server_says_so() -> None:
    config = ServerConfig("0.0.0.0", 8000, engine_config("m"), ApiSettings("m"))
    assert "open to everyone" in greeting(config, exposed=True)
    assert "open to everyone" not in greeting(config)


@pytest.mark.parametrize(("host", "outside"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_which_addresses_are_reached_from_outside(host: str, outside: bool) -> None:
    sockets = take(host, 0)
    try:
        assert reached_from_outside(sockets) is outside
    finally:
        release(sockets)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["serve", "--port", "0"], "must be at least 1"),
        (["serve", "--port", "x"], "must be a whole number"),
        (["serve", "--gpu-memory-utilization", "x"], "must be a number"),
        (["serve", "--on-hang", "x"], "not one of 'report', 'exit'"),
        (["generate", "--prompt", "Hi", "--max-tokens", "0"], "must be at least 1"),
        (["eval", "scenes", "--scenes", "x"], "must be a whole number"),
    ],
)
def test_options_are_refused_in_our_words(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    said = " ".join(result.output.replace("│", " ").split())
    assert words in said
    assert "Input should" not in said
    assert "Value error" not in said


def test_traces(configured: Any, tmp_path: Path) -> None:
    api = configured().api
    assert (api.traces, api.max_trace_bytes) == (None, 64 * MIB)
    assert (api.max_traces_bytes, api.max_stored_traces_bytes) == (512 * MIB, 1024 * MIB)
    api = configured(
        "--traces", str(tmp_path / "traces"), "--max-trace-bytes", "1000", "--trace-memory", "2",
        SACCADE_TRACE_DISK="3",
    ).api  # fmt: skip
    assert (api.traces, api.max_trace_bytes) == (tmp_path / "traces", 1000)
    assert (api.max_traces_bytes, api.max_stored_traces_bytes) == (2 * MIB, 3 * MIB)
