"""Three replicas in a Ray of this process, behind Ray's proxy."""

from __future__ import annotations

import os
import signal
import time

import httpx2
import ray
from ray import serve
from ray.serve._private.common import DeploymentID
from ray.serve.context import _get_global_client

from chaotic.backend import ADMIN_KEY, REPLICAS, Shared
from chaotic.proxied import options
from saccade_server.cluster.application import NAME, application, http_options
from saccade_server.cluster.command import parsed
from saccade_server.cluster.entrance import announce
from saccade_server.cluster.names import REPLICA
from saccade_server.serve_options.cluster import ClusterOptions
from saccade_testing.launch import ENGINE, descendants, free_port, gone, named, wait_for
from saccade_testing.launch import REPLICA as ACTOR

START_SECONDS = 240.0
DRAIN_SECONDS = 120.0
OBJECT_STORE_BYTES = 100 * 2**20


class Clustered:
    """See :class:`chaotic.backend.Backend`. Ray starts what has died, and says which one drains."""

    name = "ray"

    def __init__(self, shared: Shared) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        given = [*options(shared), "--port", str(port), "--shutdown-timeout", "60"]
        announce()
        ray.init(
            num_cpus=REPLICAS,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
        )
        _, choices = parsed(given)
        serve.start(http_options=http_options(choices))
        app = application(ClusterOptions(replicas=REPLICAS), choices, gpus=0)
        # Another number of replicas in an application that is run again would replace them all.
        serve.run(app, name=NAME, external_scaler_enabled=True)
        self._running = named(descendants(os.getpid()), ACTOR)
        self._wait_for_answers(REPLICAS)

    def kill(self, replica: int) -> None:
        actor = self._running[replica]
        processes = [actor, *named(descendants(actor), ENGINE)]
        for process in processes:
            os.kill(process, signal.SIGKILL)
        wait_for(lambda: all(map(gone, processes)), 10)

    def restore(self, replica: int) -> None:
        def is_there() -> bool:
            others = set(self._running) - {self._running[replica]}
            new = [pid for pid in named(descendants(os.getpid()), ACTOR) if pid not in others]
            if new:
                self._running[replica] = new[0]
            return bool(new)

        wait_for(is_there, START_SECONDS)
        self._wait_for_answers(REPLICAS)

    def drain(self, replica: int) -> None:
        self._scale(REPLICAS - 1)

        def one_has_ended() -> bool:
            return sum(map(gone, self._running)) == 1

        try:
            wait_for(one_has_ended, DRAIN_SECONDS)
        except AssertionError:
            raise RuntimeError("no replica has ended") from None

    def lost(self) -> int:
        found: dict[str, int] = {}
        end = time.monotonic() + START_SECONDS
        while len(found) < REPLICAS - 1 and time.monotonic() < end:
            reply = self._get("/load")
            if reply.status_code == 200:
                found[reply.headers[REPLICA]] = int(reply.json()["intervention_noops"])
        return sum(found.values())

    def close(self) -> None:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()

    def _scale(self, replicas: int) -> None:
        """Run so many; whichever more there are finish what they have, and end."""
        controller = _get_global_client()._controller  # what Ray's own scaling API calls
        ray.get(controller.update_deployment_replicas.remote(DeploymentID(NAME, NAME), replicas))

    def _wait_for_answers(self, replicas: int) -> None:
        """Until so many replicas have answered."""
        seen: set[str] = set()

        def all_have() -> bool:
            reply = self._get("/v1/models")
            if reply.status_code == 200:
                seen.add(reply.headers[REPLICA])
            return len(seen & self._alive()) == replicas

        wait_for(all_have, START_SECONDS)

    def _alive(self) -> set[str]:
        """The names of actors that have not ended, as Ray knows them."""
        found = ray.util.list_named_actors(all_namespaces=True)
        return {each["name"].rpartition("#")[2] for each in found}

    def _get(self, path: str) -> httpx2.Response:
        key = {"Authorization": f"Bearer {ADMIN_KEY}"}
        return httpx2.get(self.url + path, headers=key, timeout=60, trust_env=False)
