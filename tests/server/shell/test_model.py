"""Which model a command line names, and names on a hub that does not answer, or knows nothing."""

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saccade_server.cli import app
from saccade_server.models.folder import UnsupportedModelError
from saccade_server.models.hub import check_hub

NAME = "owner/model"


class Hub(http.server.BaseHTTPRequestHandler):
    """Knows one model, and one that asks for consent."""

    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        code, reason = 404, "RepoNotFound"
        if self.path.startswith(f"/api/models/{NAME}"):
            code, reason = 200, ""
        if self.path.startswith("/api/models/owner/gated"):
            code, reason = 403, "GatedRepo"
        body = json.dumps({"id": NAME, "siblings": []}).encode()
        self.send_response(code)
        if reason:
            self.send_header("X-Error-Code", reason)
            self.send_header("X-Error-Message", reason)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    """A hub of our own, asked without a cache."""
    kind = type("Ours", (Hub,), {"asked": []})
    server = http.server.HTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    point_at(f"http://127.0.0.1:{server.server_port}", monkeypatch, tmp_path)
    yield kind
    server.shutdown()
    server.server_close()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    from huggingface_hub import constants, hf_api

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(hf_api.constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def test_a_model_that_the_hub_has(hub: type[Hub]) -> None:
    check_hub(NAME)
    assert hub.asked.count(f"/api/models/{NAME}") == 1


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("owner/other", "the Hugging Face hub has no model of this name; check the name, or if it"),
        ("owner/gated", "asks for consent first; give it there, then set HF_TOKEN"),
    ],
)
def test_a_model_that_the_hub_does_not_give(hub: type[Hub], model: str, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=model) as caught:
        check_hub(model)
    assert words in str(caught.value)


def test_without_a_network_a_name_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hub's own client tries each file for half a minute."""
    point_at("http://127.0.0.1:9", monkeypatch, tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits to try again"))
    done = CliRunner().invoke(app, ["generate", "--prompt", "hi", "--model", NAME])
    assert done.exit_code == 3
    assert "check the name and the connection, or download the model" in done.stderr
    assert "http://127.0.0.1:9 does not answer" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_network_the_cache_serves_and_nothing_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    point_at("http://127.0.0.1:9", monkeypatch, tmp_path)
    folder = tmp_path / "models--owner--model"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    check_hub(NAME)
    assert constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "it is served from the cache" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "variable", "model"),
    [
        (["one"], None, "one"),
        (["--model", "two"], None, "two"),
        (["one", "--model", "one"], None, "one"),
        ([], "three", "three"),
        (["one"], "three", "one"),
        (["--model", "two"], "three", "two"),
        ([], None, None),
    ],
)
def test_where_the_model_is_named(
    arguments: list[str],
    variable: str | None,
    model: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Chosen(Exception):
        pass

    def check(name: str | None) -> None:
        raise Chosen(name)

    monkeypatch.setattr("saccade_server.serve_command.check_model", check)
    monkeypatch.setattr("saccade_server.serve_command._answer_signals", lambda handler: None)
    done = CliRunner().invoke(app, ["serve", *arguments], env={"SACCADE_MODEL": variable})
    assert isinstance(done.exception, Chosen)
    assert done.exception.args == (model,)
