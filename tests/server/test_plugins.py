"""Servers beside packages with methods: one that they may have, and one that stops them."""

import base64
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from saccade_server.demo import sample_path
from saccade_server.exit_codes import ExitCode
from saccade_testing.installed import METHOD, NEAR, install
from saccade_testing.launch import COMMAND, Served, environment

pytestmark = pytest.mark.timeout(300)  # servers start, on whatever machine

RULE = "\n\nclass Wishful(Rule, frozen=True):\n    pass\n"
LATE = (
    METHOD.replace("odd: bool = True", "odd: bool = False")
    + """
        plan = context.plan()
        plan.rule(type("Late", (Rule,), {}, frozen=True)())
        return plan.build()
"""
)


def beside(site: Path) -> str:
    """The import path with a folder of packages in front."""
    return os.pathsep.join((str(site), environment()["PYTHONPATH"]))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a method of another package, and with one whose rule shows in requests only."""
    folder = tmp_path_factory.mktemp("plugins")
    install(folder / "site", "their_methods", NEAR + LATE, {"near": "Near", "odd": "Odd"})
    path = beside(folder / "site")
    server = Served(folder / "log", "--no-self-test", PYTHONPATH=path)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()


def ask(server: Served, interventions: list[dict[str, Any]]) -> httpx2.Response:
    data = base64.b64encode(sample_path("clear-1").read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    content = [image, {"type": "text", "text": "Describe the image."}]
    body = {
        "model": "saccade-demo",
        "messages": [{"role": "user", "content": content}],
        "interventions": interventions,
        "temperature": 0,
        "logprobs": True,
    }
    return httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def told(response: httpx2.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["logprobs"]


def test_a_method_of_another_package_is_served(served: Served) -> None:
    """What it says is what two methods of ours say that do the same together."""
    listed = httpx2.get(f"{served.url}/v1/interventions", timeout=60).json()["data"]
    assert {"id": "near", "supported": True}.items() <= {line["id"]: line for line in listed}[
        "near"
    ].items()
    response = ask(served, [{"method": "near"}])
    layers = list(range(response.json()["interventions_applied"][0]["layers"][-1] + 1))
    ours = [
        {"method": "pai", "alpha": 0.3, "layers": layers},
        {"method": "pai_contrast", "gamma": 1.5, "cutoff": 0.1},
    ]
    assert told(response) == told(ask(served, ours))
    assert told(response) != told(ask(served, []))
    (receipt,) = response.json()["interventions_applied"]
    assert (receipt["method"], receipt["status"]) == ("near", "applied")
    assert receipt["counters"]["contrasted"] > 0


def test_a_rule_that_shows_in_a_request_is_refused_there(served: Served) -> None:
    response = ask(served, [{"method": "near"}, {"method": "odd", "odd": True}])
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "interventions[1].method"
    assert error["code"] == "intervention_unsupported_model"
    assert error["message"].startswith("odd brings a rule of its own, their_methods.Late: rules")
    assert told(ask(served, [{"method": "odd"}])) == told(ask(served, []))


@pytest.mark.parametrize(
    "command", ["serve", "methods", "generate --prompt Hi --intervention near"]
)
def test_a_rule_of_its_own_stops_the_server_in_one_sentence(tmp_path: Path, command: str) -> None:
    install(tmp_path, "wishful_methods", RULE + NEAR, {"near": "Near"})
    ended = subprocess.run(
        [*COMMAND, *command.split()],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=beside(tmp_path)),
        timeout=120,
    )
    assert ended.returncode == ExitCode.USAGE, ended.stderr
    assert not ended.stdout
    (line,) = ended.stderr.splitlines()
    assert line.startswith(
        "saccade: near, entry point 'near' of saccade.interventions of the package "
        "wishful_methods, brings a rule of its own, wishful_methods.Wishful: rules"
    )
