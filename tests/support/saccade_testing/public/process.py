"""``saccade serve`` in a process that many tests ask."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2

from saccade_testing.launch import COMMAND
from saccade_testing.public.asking import Asker


class Process:
    """``saccade serve`` on a free port."""

    def __init__(self, log: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        arguments = ("serve", "--port", str(port), "--threads", "1", "--no-self-test", *options)
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )

    def wait_until_ready(self) -> None:
        end = time.monotonic() + 500
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if httpx2.get(self.url + "/ready", trust_env=False).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("the server did not start: " + self.log.read_text())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(60) == 0, self.log.read_text()
        finally:
            self.process.kill()


def serve(log: Path, *options: str) -> Iterator[Asker]:
    process = Process(log, *options)
    try:
        process.wait_until_ready()
        asker = Asker(process.url)
        with asker.http:
            yield asker
            load = asker.http.get("/load").json()
    finally:
        process.stop()
    assert load["intervention_noops"] == 0, "an intervention acted on nothing"
