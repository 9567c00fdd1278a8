"""``saccade import``, for a model that is here and for one that is served."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from saccade_interventions.artifacts import read_artifact
from saccade_server.cli import app
from saccade_server.demo import model_path
from saccade_server.importing.targets import target_of
from saccade_testing.api.fakes import INFO
from saccade_testing.api.server import check_servers, start_server
from saccade_testing.foreign_vectors import gguf_bytes, torch_bytes, vectors

KEYS = {"SACCADE_ADMIN_KEY": "root", "SACCADE_API_KEY": "user"}


def invoke(*arguments: Any, code: int = 0, **variables: str) -> str:
    command = ["import", *map(str, arguments)]
    done = CliRunner().invoke(app, command, env=variables)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("served")
    server = start_server(api_keys=("user",), admin_keys=("root",), artifacts=folder)
    yield server
    server.stop()
    check_servers()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = gguf_bytes(tmp_path, vectors((1, 2, 3), INFO.hidden_size))
    path = tmp_path / "happy.gguf"
    path.write_bytes(made)
    return path


def test_into_a_server_and_used_there(served, file: Path) -> None:
    said = invoke(file, "--layers", "1-2", "--url", f"{served.url}/v1", **KEYS)
    assert "vectors of 2 layers, made for a model of type llama" in said
    digest = said.partition("artifact: ")[2].split()[0]
    headers = {"authorization": "Bearer user"}
    (card,) = served.http.get("/v1/artifacts", headers=headers).json()["data"]
    assert (card["id"], card["notes"], card["kind"]) == (digest, "happy.gguf", "vectors")
    entry = {"method": "steering", "artifact": digest, "rows": "prompt+generated"}
    body = {"model": "saccade-test", "prompt": "Hi", "max_tokens": 1, "interventions": [entry]}
    answer = served.http.post("/v1/completions", json=body, headers=headers).json()
    (receipt,) = answer["interventions_applied"]
    assert receipt["status"] == "applied"
    assert receipt["filled_in"] == {"coefficient": 1.0, "layers": [2, 3]}
    assert not file.with_suffix(".safetensors").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "A valid API key is needed"),
        ({"SACCADE_API_KEY": "user"}, "needs an admin key"),
        ({"SACCADE_ADMIN_KEY": "wrong"}, "A valid API key"),
    ],
)
def test_a_server_that_does_not_take_it_says_why(served, file: Path, keys, said: str) -> None:
    refused = invoke(file, "--url", served.url, code=2, **keys)
    assert refused.startswith(f"saccade: --url {served.url}: ")
    assert said in refused
    assert refused.count("\n") == 1


def test_an_address_without_a_server(file: Path) -> None:
    refused = invoke(file, "--url", "http://127.0.0.1:9", code=2)
    assert refused.startswith("saccade: --url http://127.0.0.1:9: ")
    assert "two models" in invoke(file, "--url", "http://x", "--model", "y", code=2)


def test_for_the_demo_model_into_a_file_and_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = target_of(None, "auto")
    assert target == target_of(str(model_path()), "float32"), "one fingerprint in both types"
    Path("v.pt").write_bytes(torch_bytes(np.ones(target.hidden_size, np.float32)))
    said = invoke("v.pt", "--layers", "2", "--coefficient", "0.5", "--notes", "mine")
    found = read_artifact(Path("v.safetensors").read_bytes())
    assert (found.model, found.tensors["layers"].tolist()) == (target.fingerprint, [3])
    assert (dict(found.defaults), found.notes) == ({"coefficient": 0.5}, "mine")
    assert "It is in v.safetensors." in said
    assert "2" in said
    assert "13.86" in said
    said = invoke("v.pt", "--layers", "2", "--artifacts", "store", "--notes", "")
    (stored,) = Path("store").iterdir()
    assert read_artifact(stored.read_bytes()).tensors["layers"].tolist() == [3]
    assert "It is in the folder store." in said
    # A file of vectors is not overwritten by its own artifact.
    Path("v.safetensors").rename("w.safetensors")
    named = Path("w.safetensors").read_bytes()
    assert "this is an artifact already: sha256:" in invoke("w.safetensors", code=2)
    assert Path("w.safetensors").read_bytes() == named


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.gguf",), "there is no file nothing.gguf"),
        (("v.pt",), "does not say to which layers it belongs: name them"),
        (("v.pt", "--layers", "x"), "no range of layers"),
        (("v.pt", "--layers", "99"), "layer 99; the model's last one is"),
        (("v.pt", "--layers", "1", "--coefficient", "0"), "changes nothing"),
        (("v.pt", "--layers", "1", "--model", "./none"), "there is no such folder"),
    ],
)
def test_refusals_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("v.pt").write_bytes(torch_bytes(np.ones(192, np.float32)))
    done = CliRunner().invoke(app, ["import", *arguments])
    assert done.exit_code in (2, 3), done.output
    assert said in done.output
    assert done.output.startswith("saccade: ")
    assert done.output.count("\n") == 1


def test_reading_needs_no_torch() -> None:
    import subprocess

    code = "import sys, saccade_server.importing; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_whole_model_is_not_read(tmp_path: Path) -> None:
    with (path := tmp_path / "model.gguf").open("wb") as file:
        file.truncate(2**42)
    assert "at most" in invoke(path, code=2)
