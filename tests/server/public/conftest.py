"""What people reported about servers of this kind, asked of a real process that all files share.

Each case keeps the letter and number it was collected under (I images, M messages, P parameters,
S streams, H HTTP, V interventions) and the public reports that it was rewritten from; the inputs
are our own. Expectations follow the documented behaviour of the OpenAI API, else of vLLM.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest

COMMAND = [sys.executable, "-c", "from saccade_server.cli import main; main()"]
ORIGIN = "http://localhost:5173"
"""Of the browser page that the demo's server lets in."""


def _load(name: str) -> ModuleType:
    """A module beside this one; test modules cannot import one another (importlib)."""
    spec = importlib.util.spec_from_file_location(
        f"saccade_public_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


_asking = _load("asking")
_pictures = _load("pictures")
_text_model = _load("text_model")


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


def _serve(log: Path, *options: str) -> Iterator[Any]:
    process = Process(log, *options)
    try:
        process.wait_until_ready()
        asker = _asking.Asker(process.url)
        with asker.http:
            yield asker
            load = asker.http.get("/load").json()
    finally:
        process.stop()
    assert load["intervention_noops"] == 0, "an intervention acted on nothing"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of the embedded demo model, which sees images."""
    yield from _serve(tmp_path_factory.mktemp("demo") / "log", "--cors-origin", ORIGIN)


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory, processors: ModuleType) -> Iterator[Any]:
    """A client of a random text model whose template knows tools and thinking."""
    folder = tmp_path_factory.mktemp("thinker")
    _text_model.save(processors, folder)
    options = ("--model", str(folder), "--served-model-name", "thinker")
    yield from _serve(tmp_path_factory.mktemp("log") / "log", *options)


@pytest.fixture(scope="session")
def asking() -> ModuleType:
    """The module of questions: parts, messages, and what refusals look like."""
    return _asking


@pytest.fixture(scope="session")
def pictures() -> ModuleType:
    """The module of image files."""
    return _pictures


@pytest.fixture(scope="session")
def origin() -> str:
    return ORIGIN


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))  # the first of them waits for a server
