"""compose.yaml passes on what the server can be told, and the image's health check finds it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import typer
import yaml

from saccade_interventions.registry import Registry
from saccade_server.cli import app
from saccade_server.requests.profiles import load_profiles

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
IN_THE_IMAGE = {"SACCADE_HOST", "SACCADE_ARTIFACTS", "SACCADE_TRACES"}
"""Places inside the container, which the Dockerfile fixes."""

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


def interpolated(value: str, variables: dict[str, str]) -> str:
    """The one form that is used, ${NAME:-default}, as Compose reads it."""

    def one(match: re.Match[str]) -> str:
        return variables.get(match[1]) or match[2]

    done = re.sub(r"\$\{(\w+):-([^}]*)\}", one, value)
    assert "$" not in done, value
    return done


def environment(service: dict[str, Any], **variables: str) -> dict[str, str]:
    """What the container gets from a host with these variables."""
    found = {}
    for entry in service["environment"]:
        name, given, value = entry.partition("=")
        if given:
            found[name] = interpolated(value, variables)
        elif name in variables:
            found[name] = variables[name]
    return found


def variables_of_serve() -> set[str]:
    """Those of options, and those that help texts name because they hold lists."""
    serve = typer.main.get_command(app).commands["serve"]
    offered = [parameter for parameter in serve.params if not getattr(parameter, "hidden", False)]
    named = {parameter.envvar for parameter in offered if isinstance(parameter.envvar, str)}
    texts = " ".join(parameter.help or "" for parameter in offered)
    return named | set(re.findall(r"SACCADE_[A-Z_]+", texts))


@each_service
def test_every_variable_of_serve_is_passed_on(service: dict[str, Any]) -> None:
    names = [entry.partition("=")[0] for entry in service["environment"]]
    assert len(names) == len(set(names))
    ours = {name for name in names if name.startswith("SACCADE_")}
    assert ours == variables_of_serve() - IN_THE_IMAGE
    for name in IN_THE_IMAGE:
        assert re.search(rf"^ +{name}=\S+ \\$", DOCKERFILE, re.MULTILINE)


@each_service
def test_what_the_host_leaves_unset_stays_unset(service: dict[str, Any]) -> None:
    profiles, _ = (volume for volume in service["volumes"] if isinstance(volume, dict))
    alone = {
        "SACCADE_PORT": "8000",
        "SACCADE_PROFILES": profiles["target"],
        "SACCADE_ON_HANG": "exit",
    }
    assert environment(service) == alone
    assert environment(service, SACCADE_MODEL="a/b") == alone | {"SACCADE_MODEL": "a/b"}


@each_service
def test_the_host_s_profiles_are_mounted_or_none(service: dict[str, Any]) -> None:
    profiles, keys = (volume for volume in service["volumes"] if isinstance(volume, dict))
    assert interpolated(profiles["source"], {"SACCADE_PROFILES": "mine.toml"}) == "mine.toml"
    assert interpolated(keys["source"], {"KEYS_FILE": "keys.toml"}) == "keys.toml"
    assert interpolated(keys["source"], {}) == "/dev/null"
    assert keys["target"] in (ROOT / "compose.yaml").read_text().split("services:")[0]
    assert load_profiles(Path(interpolated(profiles["source"], {})), Registry.discover()) == {}


@each_service
def test_the_host_alone_reaches_the_port_unless_told_otherwise(service: dict[str, Any]) -> None:
    (published,) = service["ports"]
    assert interpolated(published, {}) == "127.0.0.1:8000:8000"
    told = {"SACCADE_PORT": "9000", "PUBLISH": "0.0.0.0"}
    assert interpolated(published, told) == "0.0.0.0:9000:9000"
    assert environment(service, **told)["SACCADE_PORT"] == "9000"


@each_service
def test_mounted_volumes_are_declared_and_belong_to_the_server(service: dict[str, Any]) -> None:
    short = [volume for volume in service["volumes"] if isinstance(volume, str)]
    mounts = [interpolated(volume, {}).split(":") for volume in short]
    assert {mount[0] for mount in mounts} == COMPOSE["volumes"].keys()
    made = re.search(r"mkdir -p (.+?) \\", DOCKERFILE)
    assert made
    for _, target, *mode in mounts:
        # an empty volume takes the owner of the folder that it covers
        assert mode == ["ro"] or any(
            f"{path}/".startswith(f"{target}/") for path in made[1].split()
        )


@each_service
def test_images_have_the_extras_that_are_asked_for(service: dict[str, Any]) -> None:
    """The same by default, whoever builds them."""
    default = interpolated(service["build"]["args"]["EXTRAS"], {})
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(default.split(",")) <= project["optional-dependencies"].keys()
    assert f"\nARG EXTRAS={default}\n" in DOCKERFILE
    assert f"\nEXTRAS ?= {default}\n" in (ROOT / "Makefile").read_text()
    assert interpolated(service["build"]["args"]["EXTRAS"], {"EXTRAS": "otel,ray"}) == "otel,ray"


def test_a_gpu_is_reserved_in_the_profile_cuda_alone() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items()} == {
        "cpu": ["cpu"],
        "cuda": ["cuda"],
    }
    assert "deploy" not in SERVICES["cpu"]
    (device,) = SERVICES["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    for name, service in SERVICES.items():
        assert service["build"]["args"]["DEVICE"] == name == service["image"].split(":")[1]


class Probed(BaseHTTPRequestHandler):
    """Answers /live with the status of its server."""

    server: "Probe"

    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/live" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


class Probe(ThreadingHTTPServer):
    status = 200


@pytest.fixture
def probe() -> Iterator[Probe]:
    with Probe(("127.0.0.1", 0), Probed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def image(instruction: str) -> list[str]:
    """The words of the last such instruction of the Dockerfile that is written as JSON."""
    found = re.findall(rf"^(?:{instruction}) +(\[.+\])$", DOCKERFILE, re.MULTILINE)
    words: list[str] = json.loads(found[-1])
    return words


def health(port: int) -> int:
    """The exit status of the image's health check."""
    program, *arguments = image(r"HEALTHCHECK .*\\\n +CMD")
    assert program == "python"
    told = {**os.environ, "SACCADE_PORT": str(port)}
    run = [sys.executable, *arguments]
    return subprocess.run(run, env=told, check=False, capture_output=True).returncode


def test_the_health_check_asks_the_port_that_the_server_was_given(probe: Probe) -> None:
    assert health(probe.server_port) == 0
    probe.status = 503
    assert health(probe.server_port) != 0


def test_nobody_on_the_port_is_no_health() -> None:
    with Probe(("127.0.0.1", 0), Probed) as closed:
        port = closed.server_port
    assert health(port) != 0


@dataclass(frozen=True)
class Container:
    """What a service runs, with its folders in one of the test's instead of in a container."""

    arguments: list[str]
    environment: dict[str, str]
    port: int
    home: Path


@pytest.fixture
def host(tmp_path: Path) -> dict[str, str]:
    """A host with a model, a profiles file, a folder for artifacts, a key and a port."""
    shutil.copytree(ROOT / "server/saccade_server/demo/model", tmp_path / "models/mine")
    profiles = tmp_path / "mine.toml"
    profiles.write_text("[profiles.grounded]\ninterventions = [{ method = 'pai' }]\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "MODELS_DIR": str(tmp_path / "models"),
        "ARTIFACTS_DIR": str(tmp_path / "store"),
        "SACCADE_PROFILES": str(profiles),
        "SACCADE_MODEL": "/models/mine",
        "SACCADE_API_KEY": "KEY",
        "SACCADE_PORT": str(port),
    }


def container(service: dict[str, Any], folder: Path, host: dict[str, str]) -> Container:
    """Put a service together as Compose does: image, environment, mounts, command."""
    mounts = {}
    for volume in service["volumes"]:
        short = volume if isinstance(volume, str) else f"{volume['source']}:{volume['target']}"
        source, target = interpolated(short, host).split(":")[:2]
        mounts[target] = source if "/" in source else str(folder / "volumes" / source)
        if not Path(mounts[target]).exists():
            Path(mounts[target]).mkdir(parents=True)

    def inside(value: str) -> str:
        for target in sorted(mounts, key=len, reverse=True):
            if f"{value}/".startswith(f"{target}/"):
                return mounts[target] + value.removeprefix(target)
        return value

    stage = DOCKERFILE.rpartition("\nFROM ")[2]
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", stage, re.MULTILINE)
    told = dict(pair.split("=", 1) for pair in block.replace("\\\n", " ").split())
    told |= environment(service, **host)
    # Tests listen on the loopback alone, and have a path of their own.
    told |= {"SACCADE_HOST": "127.0.0.1", "PATH": os.environ["PATH"], "SACCADE_THREADS": "1"}
    assert image("ENTRYPOINT") == ["saccade"]
    command = service.get("command", image("CMD"))
    values = {name: inside(value) for name, value in told.items()}
    return Container(
        arguments=[inside(word) for word in command],
        environment=values,
        port=int(values["SACCADE_PORT"]),
        home=Path(mounts["/cache"]),
    )


@each_service
@pytest.mark.parametrize("told", [False, True])
def test_the_command_line_takes_what_a_service_says(
    service: dict[str, Any],
    told: bool,
    host: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = container(service, tmp_path, host if told else {})
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    command, *arguments = made.arguments
    serve = typer.main.get_command(app).commands[command]
    read = serve.make_context(command, list(arguments)).params
    assert read["port"] == made.port
    assert read["artifacts"] == Path(
        host["ARTIFACTS_DIR"] if told else tmp_path / "volumes/artifacts"
    )
    assert read["profiles"] == Path(host["SACCADE_PROFILES"] if told else "/dev/null")
    assert read["model"] == (str(tmp_path / "models/mine") if told else None)
    assert read["device"] == ("cuda" if "deploy" in service else "auto")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "service",
    [service for service in SERVICES.values() if "deploy" not in service],
    ids=[name for name, service in SERVICES.items() if "deploy" not in service],
)
def test_a_service_serves_what_the_host_has(
    service: dict[str, Any], host: dict[str, str], tmp_path: Path
) -> None:
    made = container(service, tmp_path, host)
    log = tmp_path / "log"
    run = "from saccade_server.cli import main; main()"
    path = os.pathsep.join(part for part in sys.path if part)
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-c", run, *made.arguments],
            cwd=made.home,
            env={**made.environment, "PYTHONPATH": path},
            stdout=out,
            stderr=out,
        )
    try:
        url = f"http://127.0.0.1:{made.port}"
        while health(made.port) != 0 or httpx2.get(f"{url}/ready").status_code != 200:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        listed = httpx2.get(f"{url}/v1/models", headers={"Authorization": "Bearer KEY"}).json()
        assert [model["id"] for model in listed["data"]] == ["mine", "mine+grounded"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(float(service["stop_grace_period"].removesuffix("s"))) == 0
    finally:
        server.kill()
        server.wait()
