"""The whole server inside this process, without a socket: for one-off commands.

Requests go through the same application as over HTTP, so they are checked, run and receipted in
exactly the same way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from saccade_interventions.registry import Registry
from saccade_server.api.app import create_app
from saccade_server.api.settings import ApiSettings
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.load import load_core
from saccade_server.engine.local import LocalEngine
from saccade_server.models.prompt import PromptProcessor

TIMEOUT_SECONDS = 24 * 3600.0
"""Nobody else waits for a one-off command, so it may take its time."""


@asynccontextmanager
async def open_server(config: EngineConfig, name: str) -> AsyncIterator[httpx2.AsyncClient]:
    """Load a model and yield an HTTP client bound to it.

    Raises:
        UnsupportedModelError: the model cannot be served; the message says why.
    """
    core = load_core(config)
    engine = LocalEngine(core)
    try:
        settings = ApiSettings(
            served_model_name=name, access_log=False, request_timeout=TIMEOUT_SECONDS
        )
        prompts = PromptProcessor.load(config.model)
        app = create_app(engine, prompts, Registry.discover(), settings)
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://saccade", timeout=None
        ) as client:
            yield client
    finally:
        await engine.close()
