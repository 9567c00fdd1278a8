"""What a supervisor relies on, over real processes: probes, orphans, signals, exit codes."""

import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from safetensors.torch import load_file, save_file

from saccade_server import demo
from saccade_server.exit_codes import ExitCode
from saccade_testing import launch

pytestmark = pytest.mark.timeout(300)  # servers start, on whatever machine

SECRET = "only-the-api-knows"
HEADERS = {"authorization": f"Bearer {SECRET}"}
ENDLESS = {
    "model": "saccade-demo",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 1900,
    "ignore_eos": True,
}


def run_serve(*options: str, **variables: str) -> Any:
    return subprocess.run(
        [*launch.COMMAND, "serve", "--port", str(launch.free_port()), *options],
        capture_output=True,
        text=True,
        env=launch.environment(**variables),
        timeout=280,
    )


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Another server, to be killed; it starts while the first one does."""
    folder = tmp_path_factory.mktemp("doomed")
    server = launch.Served(folder / "log", "--no-self-test", TMPDIR=str(folder))
    try:
        yield server
    finally:
        server.end()


@pytest.fixture(scope="module")
def served(doomed: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server whose engine may be silent for three seconds. The last test ends it."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "profiles.toml").touch()
    server = launch.Served(
        folder / "log",
        *("--no-self-test", "--silence-timeout", "3"),
        *("--profiles", str(folder / "profiles.toml")),
        SACCADE_API_KEY=SECRET,
        SACCADE_ADMIN_KEY=SECRET + "-admin",
        HF_TOKEN=SECRET + "-hub",
        OTHER_API_TOKEN=SECRET + "-other",
        TMPDIR=str(folder),
    )
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()


def test_the_engine_knows_no_secret(served: Any) -> None:
    (engine,) = served.children()
    for name in ("environ", "cmdline"):
        seen = Path(f"/proc/{engine}/{name}").read_bytes()
        assert b"saccade" in seen or b"PATH=" in seen
        assert SECRET.encode() not in seen


def test_a_stopped_engine_loses_ready_then_live_and_gets_them_back(served: Any) -> None:
    (engine,) = served.children()
    os.kill(engine, signal.SIGSTOP)
    try:
        launch.wait_for(lambda: served.status("/ready") == 503)
        launch.wait_for(lambda: served.status("/live") == 503)
        assert served.status("/health") == 503
    finally:
        os.kill(engine, signal.SIGCONT)
    launch.wait_for(lambda: served.status("/live") == served.status("/ready") == 200)
    launch.wait_for(lambda: "the engine goes on" in served.log.read_text())
    hung, _, after = served.log.read_text().partition("the engine hangs: no sign of life")
    assert "the engine goes on" in after
    assert "the engine goes on" not in hung


@pytest.mark.long
def test_a_hangup_has_the_profiles_read_again_and_ends_nothing(served: Any) -> None:
    def models() -> list[str]:
        listed = httpx2.get(served.url + "/v1/models", headers=HEADERS).json()["data"]
        return [str(model["id"]) for model in listed]

    path = served.log.with_name("profiles.toml")
    path.write_text("[profiles.later]\ninterventions = [{ method = 'pai' }]\n")
    body = {**ENDLESS, "stream": True}
    with httpx2.stream(
        "POST", served.url + "/v1/chat/completions", json=body, headers=HEADERS, timeout=90
    ) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        served.process.send_signal(signal.SIGHUP)
        launch.wait_for(lambda: models() == ["saccade-demo", "saccade-demo+later"])
        path.write_text("[profiles.wrong]\ninterventions = [{ method = 'paj' }]\n")
        served.process.send_signal(signal.SIGHUP)
        launch.wait_for(lambda: "what was in force stays" in served.log.read_text())
        assert next(line for line in lines if line).startswith("data: ")
    assert models() == ["saccade-demo", "saccade-demo+later"]
    assert f"{path}:1: profile 'wrong', entry 1 (paj): unknown method" in served.log.read_text()


def test_the_second_signal_ends_answers_with_an_error_and_the_server_with_0(served: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        answers.put(
            httpx2.post(
                served.url + "/v1/chat/completions", json=ENDLESS, headers=HEADERS, timeout=90
            )
        )

    body = {**ENDLESS, "stream": True}
    with httpx2.stream(
        "POST", served.url + "/v1/chat/completions", json=body, headers=HEADERS, timeout=90
    ) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        plain = threading.Thread(target=ask)
        plain.start()
        launch.wait_for(
            lambda: httpx2.get(served.url + "/load", headers=HEADERS).json()["running"] == 2
        )
        served.process.send_signal(signal.SIGTERM)
        launch.wait_for(lambda: served.status("/ready") == 503)
        served.process.send_signal(signal.SIGINT)
        events = [line for line in lines if line]
    assert events[-1] == "data: [DONE]"
    assert '"code":"server_draining"' in events[-2]
    refused = answers.get(timeout=60)
    plain.join()
    assert refused.status_code == 500, "it was begun; a 503 says that nothing was"
    assert refused.json()["error"]["code"] == "server_draining"
    assert served.process.wait(60) == ExitCode.STOPPED
    left = {path.name for path in served.log.parent.iterdir()}
    assert left == {"log", "log.out", "profiles.toml"}, (
        "an orderly end leaves nothing in the temporary folder"
    )


def test_the_engine_of_a_killed_server_ends(doomed: Any) -> None:
    """While it computes, and although its process is stopped and cannot run a line of Python."""
    doomed.wait_until_ready()
    (engine,) = doomed.children()
    body = {**ENDLESS, "stream": True}
    with httpx2.stream(
        "POST", doomed.url + "/v1/chat/completions", json=body, timeout=90
    ) as stream:
        next(stream.iter_lines())
        os.kill(engine, signal.SIGSTOP)
        os.kill(doomed.pid, signal.SIGKILL)
    launch.wait_for(lambda: launch.gone(engine), 10)


def test_the_next_start_removes_what_a_killed_server_left(doomed: Any) -> None:
    folder = doomed.log.parent
    doomed.end()
    left = {path.name.rpartition("-")[0] for path in folder.glob("saccade-*")}
    assert left == {"saccade-engine", "saccade-artifacts", "saccade-traces"}
    damaged = folder / "damaged"
    shutil.copytree(Path(demo.__file__).parent / "model", damaged)
    (damaged / "model.safetensors").write_bytes(b"cut off")
    done = run_serve("--model", str(damaged), TMPDIR=str(folder))
    assert done.returncode == ExitCode.MODEL
    assert done.stderr.splitlines()[-1].startswith(f"saccade: {damaged}/model.safetensors: ")
    assert "Traceback" not in done.stderr
    assert not list(folder.glob("*saccade-*"))


def test_a_port_in_use_is_found_before_the_model_loads() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_serve("--port", port)
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith(f"saccade: port {port} of 127.0.0.1 is in use")


def test_a_model_whose_answers_are_no_numbers_stops_the_server(tmp_path: Path) -> None:
    """Its weights are finite, so they load; its self-test is what notices."""
    folder = tmp_path / "m"
    shutil.copytree(Path(demo.__file__).parent / "model", folder)
    weights = load_file(folder / "model.safetensors")
    (norm,) = (name for name in weights if name.endswith("model.norm.weight"))
    weights[norm] *= 3e37 / weights[norm].abs().max()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    done = run_serve("--model", str(folder))
    assert done.returncode == ExitCode.MODEL
    assert "not made of finite numbers in float32" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


BUSY = """
import sys, threading, time
from saccade_server import cli
def app():
    threading.Thread(target=time.sleep, args=(600,)).start()
    sys.exit(3)
cli.app = app
cli.main()
"""


def test_a_busy_thread_does_not_keep_a_process_that_ends() -> None:
    """Such as one that decodes a large image: Python would wait for it."""
    done = subprocess.run([sys.executable, "-c", BUSY], env=launch.environment(), timeout=120)
    assert done.returncode == 3


@pytest.mark.long
def test_an_engine_that_hangs_ends_the_server_if_told_to(tmp_path: Path) -> None:
    server = launch.Served(
        tmp_path / "log", "--no-self-test", "--silence-timeout", "2", "--on-hang", "exit"
    )
    try:
        server.wait_until_ready()
        body = {**ENDLESS, "stream": True}
        with httpx2.stream(
            "POST", server.url + "/v1/chat/completions", json=body, timeout=90
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(server.children()[0], signal.SIGSTOP)
            events = [line for line in lines if line]
        assert '"code":"engine_dead"' in events[-2]
        assert events[-1] == "data: [DONE]"
        assert server.process.wait(60) == ExitCode.HUNG
    finally:
        server.end()


@pytest.mark.long
def test_two_processes_that_were_stopped_together_are_healthy_when_they_wake(
    tmp_path: Path,
) -> None:
    server = launch.Served(tmp_path / "log", "--no-self-test", "--silence-timeout", "2")
    try:
        server.wait_until_ready()
        pids = [server.pid, *server.children()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(20)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for _ in range(40):
            assert server.status("/ready") == 200
            threading.Event().wait(0.05)
        assert "late" not in server.log.read_text()
    finally:
        server.end()
