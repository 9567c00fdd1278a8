"""A server on a real socket over a scripted engine and a byte-level prompt processor."""

from collections.abc import Iterator
from typing import Any

import pytest

from saccade_server.api.settings import ApiSettings
from saccade_testing.api import fakes
from saccade_testing.api.bodies import MODEL
from saccade_testing.api.server import (
    MakeServer,
    Server,
    check_servers,
    start_server,
)


@pytest.fixture(autouse=True)
def nothing_lost_nothing_undocumented() -> Iterator[None]:
    """No test may make a server lose an intervention, or answer what its document does not say."""
    yield
    check_servers()


@pytest.fixture
def make_server() -> Iterator[MakeServer]:
    """Start a server whose settings or engine differ."""
    servers = []

    def make(*arguments: Any, **options: Any) -> Server:
        servers.append(start_server(*arguments, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    settings = ApiSettings(
        served_model_name=MODEL, max_body_bytes=1024 * 1024, max_image_pixels=1_000_000
    )
    server = Server(fakes.FakeEngine(), settings)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: Server) -> Server:
    """One server for all tests, its engine as new."""
    shared_server.renew()
    return shared_server
