"""Three servers behind HAProxy, under the configuration that is shipped."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx2

from chaotic.backend import ADMIN_KEY, REPLICAS, Shared
from saccade_testing.launch import Served, free_port, gone, wait_for
from saccade_testing.proxied import Proxy

START_SECONDS = 900.0  # beside others that compute without a pause
DRAIN_SECONDS = 120.0


class Proxied:
    """See :class:`chaotic.backend.Backend`."""

    name = "haproxy"

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._ports = [free_port() for _ in range(REPLICAS)]
        self._served = [self._start(at) for at in range(REPLICAS)]
        for server in self._served:
            server.wait_until_ready(START_SECONDS)
        self._proxy = Proxy(shared.logs, self._ports)
        self.url = self._proxy.url
        for at in range(REPLICAS):
            self._wait_until_up(at)

    def kill(self, replica: int) -> None:
        server = self._served[replica]
        processes = [server.pid, *server.children()]
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
        wait_for(lambda: all(map(gone, processes)), 10)

    def restore(self, replica: int) -> None:
        self._served[replica] = self._start(replica)
        self._served[replica].wait_until_ready(START_SECONDS)
        self._wait_until_up(replica)

    def drain(self, replica: int) -> None:
        server = self._served[replica]
        os.kill(server.pid, signal.SIGTERM)
        code = server.process.wait(DRAIN_SECONDS)
        if code != 0:
            raise RuntimeError(f"a drained replica ended with {code}")

    def lost(self) -> int:
        living = [server for server in self._served if server.process.poll() is None]
        key = {"Authorization": f"Bearer {ADMIN_KEY}"}
        replies = [httpx2.get(f"{server.url}/load", headers=key, timeout=30) for server in living]
        return sum(int(reply.json()["intervention_noops"]) for reply in replies)

    def close(self) -> None:
        self._proxy.end()
        for server in self._served:
            server.end()

    def _start(self, replica: int) -> Served:
        shared = self._shared
        log = shared.logs / f"replica-{replica}-{time.monotonic_ns()}.log"
        return Served(log, *options(shared), "--shutdown-timeout", "60", port=self._ports[replica])

    def _wait_until_up(self, replica: int) -> None:
        line = f"server replicas/replica{replica + 1} "
        wait_for(lambda: is_up(self._proxy.log, line), START_SECONDS)


def is_up(log: Path, line: str) -> bool:
    """Whether the last that HAProxy said of a server's state is that it is up."""
    said = [text for text in log.read_text().splitlines() if line in text.lower()]
    return bool(said) and (" up." in said[-1].lower() or " is up" in said[-1].lower())


def options(shared: Shared) -> list[str]:
    """Of ``saccade serve``."""
    given: dict[str, object] = {
        "--artifacts": shared.artifacts,
        "--traces": shared.traces,
        "--profiles": shared.profiles,
        "--admin-key": ADMIN_KEY,
        "--device": "cpu",
    }
    return [*(str(word) for pair in given.items() for word in pair), "--no-self-test"]
