"""The whole server inside this process, without a socket: for one-off commands.

Requests go through the same application as over HTTP, so they are checked, run and receipted in
exactly the same way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import httpx2

from saccade_interventions.registry import Registry
from saccade_server.api.app import create_app
from saccade_server.api.settings import ApiSettings
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.load import load_core
from saccade_server.engine.local import LocalEngine
from saccade_server.models.prompt import PromptProcessor
from saccade_server.selftest import Findings, examine

TIMEOUT_SECONDS = 24 * 3600.0
"""Nobody else waits for a one-off command, so it may take its time."""


@asynccontextmanager
async def open_server(
    config: EngineConfig, name: str, *, self_test: bool = False, **settings: Any
) -> AsyncIterator[httpx2.AsyncClient]:
    """Load a model and yield an HTTP client bound to it; ``settings`` are fields of ApiSettings.

    ``self_test``: try every method on the model first, and offer those that show.

    Raises:
        UnsupportedModelError: the model cannot be served; the message says why.
    """
    core = load_core(config)
    async with serve_core(core, config.model, name, self_test=self_test, **settings) as client:
        yield client


@asynccontextmanager
async def serve_core(
    core: EngineCore, model: str, name: str, *, self_test: bool = False, **settings: Any
) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve a loaded model; ``model`` is where its prompts' parts are."""
    engine = LocalEngine(core)
    try:
        chosen = ApiSettings(
            served_model_name=name, access_log=False, request_timeout=TIMEOUT_SECONDS, **settings
        )
        prompts, registry = PromptProcessor.load(model), Registry.discover()
        found = await examine(engine, prompts, registry) if self_test else Findings({}, {})
        app = create_app(
            engine, prompts, registry, chosen, faults=found.faults, tested=found.tested
        )
        with closing(app.state.services):
            transport = httpx2.ASGITransport(app=app)
            async with httpx2.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=None
            ) as client:
                yield client
    finally:
        await engine.close()
