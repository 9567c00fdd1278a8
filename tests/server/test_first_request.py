"""What the greeting tells a newcomer to paste, pasted into shells, at a real server."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from saccade_client import Saccade
from saccade_server import serving
from saccade_server.demo import SHOWN_SAMPLE, sample_path
from saccade_server.demo.story import Story
from saccade_server.serving import example_request
from saccade_testing import launch

STORY = Story.of(SHOWN_SAMPLE)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    server = launch.Served(tmp_path_factory.mktemp("server") / "log", "--no-self-test")
    try:
        server.wait_until_ready()
        launch.wait_for(lambda: "curl" in server.output.read_text())
        yield server
    finally:
        server.end()


def paste(shell: str, command: str, **variables: str) -> dict[str, Any]:

    done = subprocess.run(
        [shell, "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_the_greeting_can_be_pasted_and_its_answer_is_right(served: Any, shell: str) -> None:
    greeting = served.output.read_text()
    assert f"{STORY.plain_answer} (wrong: no blue square there" in greeting
    (command,) = [line for line in greeting.splitlines() if line.startswith("curl")]
    answer = paste(shell, command)
    assert answer["choices"][0]["message"]["content"] == STORY.reference
    (entry,) = answer["interventions_applied"]
    assert (entry["method"], entry["status"]) == ("vcd", "applied")


def test_without_the_intervention_the_answer_is_what_the_greeting_says(served: Any) -> None:
    (command,) = [line for line in served.output.read_text().splitlines() if line[:4] == "curl"]
    plain = paste("sh", command.replace('{"method": "vcd"}', ""))
    assert plain["choices"][0]["message"]["content"] == STORY.plain_answer


def test_it_can_be_pasted_whatever_the_folder_is_called(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / 'it\'s a $HOME "folder" `x`'
    folder.mkdir()
    image = folder / "image.png"
    shutil.copy(sample_path(SHOWN_SAMPLE), image)
    monkeypatch.setattr(serving, "sample_path", lambda name: image)
    command = example_request(served.url, "saccade-demo", STORY.question, with_key=True)
    assert "-w" not in command.split("base64 ")[1], "macOS has no such option"
    answer = paste("sh", command, SACCADE_API_KEY="a key")
    assert answer["choices"][0]["message"]["content"] == STORY.reference


def test_the_answer_is_the_same_beside_others(served: Any) -> None:
    methods: list[list[str]] = [["vcd"], [], ["var"], ["pai"]]
    with Saccade(served.url) as client, ThreadPoolExecutor(12) as pool:

        def ask(entries: list[str]) -> str:
            path = sample_path(SHOWN_SAMPLE)
            return client.chat(
                STORY.question, images=path, interventions=entries, temperature=0
            ).text

        answers = list(pool.map(ask, methods * 6))
    assert set(answers[::4]) == {STORY.reference}
    assert set(answers[1::4]) == {STORY.plain_answer}
