"""A real HAProxy under the configuration that is shipped, before servers at given ports."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import httpx2

from saccade_testing.launch import free_port, wait_for

FOLDER = Path(__file__).parents[3] / "deploy" / "haproxy"
HAPROXY = shutil.which("haproxy", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
TEMPLATE = '    server-template replica "${REPLICAS_SLOTS}" "${REPLICAS_HOST}:${REPLICAS_PORT}"\n'


class Proxy:
    """HAProxy on a loopback port; ``folder`` gets its configuration and its log.

    Replicas in containers have one port and an address each. Here they have ports, so the line that
    finds them by their name is replaced by one for each; nothing else is.
    """

    def __init__(self, folder: Path, ports: Sequence[int], **variables: str) -> None:
        assert HAPROXY is not None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "haproxy.log"
        text = (FOLDER / "haproxy.cfg").read_text()
        assert TEMPLATE in text
        lines = [f"    server replica{at} 127.0.0.1:{port}\n" for at, port in enumerate(ports, 1)]
        config = folder / "haproxy.cfg"
        config.write_text(text.replace(TEMPLATE, "".join(lines)))
        chosen = {"PROXY_BIND": f"127.0.0.1:{self.port}", "AFFINITY_LUA": f"{FOLDER}/affinity.lua"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [HAPROXY, "-db", "-f", str(config)],
                stdout=log,
                stderr=log,
                env={**os.environ, **chosen, **variables},
            )

    def ready(self) -> bool:
        """Whether it has a replica; the process lives."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            with httpx2.Client(trust_env=False) as http:
                return http.get(f"{self.url}/proxy/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def wait_until_ready(self, seconds: float = 20.0) -> None:
        """Wait for a replica that takes requests."""
        wait_for(self.ready, seconds)

    def end(self) -> None:
        """Stop it."""
        self.process.kill()
        self.process.wait()
