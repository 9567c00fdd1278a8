"""One replica: an engine and the application before it, in an actor of Ray Serve.

The application is the one that ``saccade serve`` listens for. What only its own connections can do
is left to Ray's proxy: times and numbers of connections. The rest holds in every replica by itself.

Ray asks :meth:`Replica.check_health`, and replaces a replica that fails it three times. An engine
that has died ends its actor at once, so that no request is sent to it any more. A replica that is
to go is sent nothing new, finishes what it has, and then stops.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from typing import Any

from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.deployment import deployment_of
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.assembly import Assembly
from saccade_server.cluster.agreement import agree
from saccade_server.cluster.names import LATE, REPLICA
from saccade_server.engine.remote import STOP_TIMEOUT
from saccade_server.engine.watchdog import HUNG
from saccade_server.hangs import hangs
from saccade_server.loading import load
from saccade_server.options import log_to_stderr
from saccade_server.selftest import Findings, examine
from saccade_server.serve_options.server import Choices

logger = logging.getLogger("saccade")

LAST_WORDS_SECONDS = 0.5
"""What requests get to send that the engine has died, before its actor ends."""


class Named:
    """Names the replica in every answer."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app = app
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REPLICA] = self.name
            await send(message)

        await self.app(scope, receive, named_send)


@serve.ingress()
class Replica:
    """Loads a model when it is made, and gives Ray the application for it.

    Raises:
        Exception: what ``saccade serve`` would refuse to start for; Ray shows the message.
    """

    async def __init__(self, choices: Choices) -> None:  # type: ignore[misc]  # Ray awaits it
        log_to_stderr(choices.log_level, choices.log_format, serving=True)
        self._config = choices.config()
        assembly = Assembly.begin(self._config)
        self._engine, prompts = await load(self._config.engine)
        self._watching = asyncio.create_task(self._watch())
        try:
            found = Findings({}, {})
            if self._config.self_test:
                limit = self._config.self_test_limit
                found = await examine(self._engine, prompts, assembly.registry, limit)
            self._app = assembly.app(self._engine, prompts, found)
            services = self._app.state.services
            await agree(choices, deployment_of(services, services.profiles))
        except BaseException:
            self._watching.cancel()
            await self._engine.close(0.0)
            raise
        self._lifecycle: Lifecycle = self._app.state.lifecycle
        # What there is by now stays: the collector leaves it alone from now on.
        gc.collect()
        gc.freeze()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, as Ray asks for it."""
        return Named(self._app, serve.get_replica_context().replica_id.unique_id)

    async def check_health(self) -> None:
        """Fail if the engine is dead or hangs."""
        if not self._engine.alive:
            raise RuntimeError("the engine has died")
        if self._overdue() >= HUNG:
            raise RuntimeError("the engine hangs")

    async def record_routing_stats(self) -> dict[str, Any]:
        """Whether requests should rather go elsewhere."""
        return {LATE: self._lifecycle.draining or self._engine.full or self._overdue() >= 1}

    async def __del__(self) -> None:
        """End what Ray has not waited for with an error, then the engine."""
        if not hasattr(self, "_lifecycle"):  # it never served
            return
        self._watching.cancel()
        await self._lifecycle.shutdown(0.0)
        self._app.state.services.close()
        await self._engine.close(STOP_TIMEOUT if self._overdue() < 1 else 0.0)

    def _overdue(self) -> float:
        settings = self._config.api
        return self._engine.lag.overdue(settings.silence_timeout, settings.step_timeout)

    async def _watch(self) -> None:
        """End the actor if the engine dies, or is to be ended because it hangs."""
        if await hangs(self._engine, self._config.api, report_only=not self._config.exit_on_hang):
            logger.error("the engine is killed, because it hangs")
            await self._engine.close(0.0)
        logger.error("the engine has died; so does its replica")
        await asyncio.sleep(LAST_WORDS_SECONDS)
        os._exit(1)
