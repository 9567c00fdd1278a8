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
from functools import cached_property
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.lifecycle import Lifecycle
from saccade_server.api.metrics.exposition import Family
from saccade_server.api.metrics.route import families_of
from saccade_server.api.reloading import read_all
from saccade_server.api.services import Services
from saccade_server.assembly import Assembly
from saccade_server.cluster.agreement import (
    Agreement,
    Member,
    RayNotes,
    about,
    deployment_with_keys,
)
from saccade_server.cluster.everyone import ask_everyone
from saccade_server.cluster.files import Files
from saccade_server.cluster.names import LATE, REPLICA
from saccade_server.cluster.scrape import SECONDS, merged
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
        member = self._member(choices)
        last_round = await asyncio.to_thread(Files.last_round, member)
        assembly = Assembly.begin(self._config)
        self._engine, prompts = await load(self._config.engine)
        self._watching = asyncio.create_task(self._watch())
        try:
            found = Findings({}, {})
            if self._config.self_test:
                limit = self._config.self_test_limit
                found = await examine(self._engine, prompts, assembly.registry, limit)
            self._app = assembly.app(self._engine, prompts, found, collect=self._collect)
            files = self._app.state.reloadables
            for apply in await read_all(files):  # keys may have changed since the command ran
                apply()
            await asyncio.to_thread(member.join)
            self._files = Files(files, member, last_round)
        except BaseException:
            self._watching.cancel()
            await self._engine.close(0.0)
            raise
        self._lifecycle: Lifecycle = self._app.state.lifecycle
        self._keeping_up = asyncio.create_task(self._files.keep_up())
        # What there is by now stays: the collector leaves it alone from now on.
        gc.collect()
        gc.freeze()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, as Ray asks for it."""
        return Named(self._app, self._name)

    async def families(self) -> tuple[str, list[Family]]:
        """What this replica says of itself, for a scrape that asked another."""
        return self._name, await families_of(self._app.state.services)

    async def check_files(self, round: str) -> tuple[str, str]:
        """Read files again for ``round``. Returns this replica's name, and what is wrong."""
        return self._name, await self._files.check(round)

    async def apply_files(self, round: str) -> tuple[str, list[str]]:
        """Put into force what was read. Returns this replica's name, and what the log says."""
        return self._name, await self._files.apply(round)

    async def check_health(self) -> None:
        """Fail if the engine is dead or hangs."""
        if not self._engine.alive:
            raise RuntimeError("the engine has died")
        if self._overdue() >= HUNG:
            raise RuntimeError("the engine hangs")
        if self._files.behind:
            raise RuntimeError(self._files.behind)

    async def record_routing_stats(self) -> dict[str, Any]:
        """Whether requests should rather go elsewhere."""
        busy = self._lifecycle.draining or self._engine.full or self._overdue() >= 1
        return {LATE: busy or bool(self._files.behind)}

    async def __del__(self) -> None:
        """End what Ray has not waited for with an error, then the engine."""
        if not hasattr(self, "_lifecycle"):  # it never served
            return
        self._watching.cancel()
        self._keeping_up.cancel()
        await self._lifecycle.shutdown(0.0)
        self._app.state.services.close()
        await self._engine.close(STOP_TIMEOUT if self._overdue() < 1 else 0.0)

    def _member(self, choices: Choices) -> Member:
        context = serve.get_replica_context()
        agreement = Agreement(RayNotes(), about(context.app_name, choices))
        name = context.replica_id.to_full_id_str()
        return Member(agreement, name, lambda: deployment_with_keys(self._app.state.services))

    @property
    def _name(self) -> str:
        return serve.get_replica_context().replica_id.unique_id

    @cached_property
    def _everyone(self) -> DeploymentHandle[Any]:
        context = serve.get_replica_context()
        return serve.get_deployment_handle(context.deployment, context.app_name)

    async def _collect(self, services: Services) -> list[Family]:
        """The numbers of all replicas that answer; of this one in any case."""
        own, answers = await asyncio.gather(
            families_of(services), ask_everyone(self._everyone, "families", SECONDS)
        )
        found = {**dict(answers.found), self._name: own}
        return merged(found, services.settings.served_model_name, silent=answers.silent)

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
