"""compose.yaml passes on what the server can be told, and the image's health check finds it."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from saccade_server.cli import app

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
IN_THE_IMAGE = {"SACCADE_HOST", "SACCADE_ARTIFACTS"}
"""Places inside the container, which the Dockerfile fixes."""

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


def interpolated(value: str, variables: dict[str, str]) -> str:
    """The forms ${NAME:-default} and ${NAME:+replacement}, as Compose reads them."""

    def one(match: re.Match[str]) -> str:
        name, operator, text = match.groups()
        found = variables.get(name, "")
        return (found or text) if operator == ":-" else (text if found else "")

    done = re.sub(r"\$\{(\w+)(:[-+])([^}]*)\}", one, value)
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
    named = {parameter.envvar for parameter in serve.params if isinstance(parameter.envvar, str)}
    texts = " ".join(parameter.help or "" for parameter in serve.params)
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
    assert environment(service) == {
        "SACCADE_PORT": "8000",
        "SACCADE_PROFILES": "",
        "SACCADE_ON_HANG": "exit",
    }
    told = environment(service, SACCADE_MODEL="org/model", SACCADE_PROFILES="mine.toml")
    assert told["SACCADE_MODEL"] == "org/model"
    assert told["SACCADE_PROFILES"] in [
        volume["target"] for volume in service["volumes"] if isinstance(volume, dict)
    ]


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


def health(port: int) -> int:
    """The exit status of the image's health check."""
    match = re.search(r"^HEALTHCHECK .*\\\n +CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    assert match
    program, *arguments = json.loads(match[1])
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
