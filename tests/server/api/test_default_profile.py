"""A profile that requests get which name nothing; and profiles that change while a server runs."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from saccade_server.api.app import create_app
from saccade_server.api.reloading import profiles_file, reload
from saccade_server.api.settings import ApiSettings
from saccade_server.requests.profiles import ProfileError
from saccade_testing.api.bodies import MODEL, chat_body
from saccade_testing.api.fakes import BytePrompts, FakeEngine
from saccade_testing.api.server import REGISTRY, start_server

PASTA = {"method": "pasta", "spans": [[0, 2]], "layers": [1], "alpha": 0.5}
OTHER = {"method": "pasta", "spans": [[0, 2]], "layers": [2], "alpha": 0.25}
FAR = {"method": "pasta", "spans": [[300, 301]], "layers": [1], "alpha": 0.5}
PROFILES = {
    "grounded": {"interventions": [PASTA]},
    "other": {"interventions": [OTHER]},
    "far": {"interventions": [FAR]},
}


@pytest.fixture(scope="module")
def started():
    server = start_server(profiles=PROFILES, default_profile="grounded")
    yield server
    server.stop()


@pytest.fixture
def serving(started):
    started.renew()
    return started


def layers_of(server) -> list[int]:
    plan = server.engine.requests[-1].plan
    return [] if plan is None else [plan.scores[0].sites[0][0]]


@pytest.mark.parametrize("body", [{}, {"vllm_xargs": {}}, {"stream": True}, {"model": MODEL}])
def test_who_names_nothing_gets_it_and_is_told(serving, body):
    response = serving.chat(**body)
    assert response.status_code == 200
    assert response.headers["x-intervention-profile"] == "grounded"
    assert '"intervention_profile":"grounded"' in response.text.replace(": ", ":")
    assert layers_of(serving) == [1]


@pytest.mark.parametrize(
    ("body", "layers"),
    [
        ({"interventions": []}, []),
        ({"interventions": None}, []),
        ({"vllm_xargs": {"interventions": "[]"}}, []),
        ({"interventions": [OTHER]}, [2]),
        ({"intervention_profile": "other"}, [2]),
        ({"model": f"{MODEL}+other"}, [2]),
    ],
)
def test_whoever_names_anything_does_not(serving, body, layers):
    response = serving.chat(**body)
    assert layers_of(serving) == layers
    assert response.headers.get("x-intervention-profile") != "grounded"


def test_completions_and_validation_have_it_too(serving):
    body = {"model": MODEL, "prompt": "Hi there", "max_tokens": 2}
    assert serving.http.post("/v1/completions", json=body).json()["intervention_profile"]
    assert layers_of(serving) == [1]
    checked = serving.http.post("/v1/interventions/validate", json={}).json()
    assert checked["profile"] == "grounded"
    assert [entry["method"] for entry in checked["interventions"]] == ["pasta"]


def test_it_is_shown_where_models_and_profiles_are(serving):
    models = serving.http.get("/v1/models").json()["data"]
    assert {model["id"]: model["profile"] for model in models} == {
        MODEL: "grounded",
        f"{MODEL}+grounded": "grounded",
        f"{MODEL}+other": "other",
        f"{MODEL}+far": "far",
    }
    assert serving.http.get(f"/v1/models/{MODEL}").json()["profile"] == "grounded"
    listed = serving.http.get("/v1/profiles").json()["data"]
    assert [item["id"] for item in listed if item["default"]] == ["grounded"]


@pytest.mark.parametrize("route", ["chat/completions", "completions", "interventions/validate"])
def test_a_refusal_says_whose_entry_it_is_and_how_to_do_without(started, route):
    started.renew()
    profiles = started.app.state.services.profiles
    profiles.default = "far"
    try:
        body = chat_body() if "chat" in route or "validate" in route else {"prompt": "Hi"}
        body.pop("temperature", None)
        response = started.http.post(f"/v1/{route}", json={**body, "model": MODEL})
    finally:
        profiles.default = "grounded"
    assert response.status_code == 400
    found = response.json()["error"]
    assert found["param"].startswith("interventions[0]")
    assert 'default profile "far"; a request with interventions [] runs' in found["message"]
    # Who asks for it by its name is told what is wrong with it, and no more.
    named = started.chat(intervention_profile="far").json()["error"]
    assert "default" not in named["message"]


def test_a_default_that_is_none_of_the_profiles_stops_the_server():
    prompts: Any = BytePrompts()
    settings = ApiSettings(served_model_name=MODEL, default_profile="groundet")
    with pytest.raises(ProfileError, match='unknown profile "groundet"'):
        create_app(FakeEngine(), prompts, REGISTRY, settings)


def again(server, *files):
    return asyncio.run_coroutine_threadsafe(reload(files), server.loop).result(10)


def profiles_text(**profiles: dict[str, Any]) -> str:
    lines = []
    for name, entry in profiles.items():
        spans, alpha = entry["spans"], entry["alpha"]
        lines += [f"[profiles.{name}]", "interventions = [{ method = 'pasta',"]
        lines[-1] += f" spans = {spans}, layers = {entry['layers']}, alpha = {alpha} }}]"
    return "\n".join(lines)


@pytest.fixture
def changing(tmp_path):
    """A server, its file of profiles, and how it is read again."""
    server = start_server(
        profiles={"grounded": {"interventions": [PASTA]}}, default_profile="grounded"
    )
    path = tmp_path / "profiles.toml"
    yield server, path, profiles_file(path, server.app.state.services)
    server.stop()


def test_a_right_file_counts_for_the_requests_that_come(changing, caplog):
    server, path, file = changing
    path.write_text(profiles_text(grounded=OTHER, new=PASTA))
    with caplog.at_level(logging.INFO, "saccade.reload"):
        assert again(server, file)
    assert f"reloaded: 2 profiles of {path}" in caplog.text
    server.chat()
    assert layers_of(server) == [2]
    server.chat(model=f"{MODEL}+new")
    assert layers_of(server) == [1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[profiles", "is not TOML"),
        (profiles_text(other=OTHER), 'unknown profile "grounded"'),  # the default is missing
        (profiles_text(grounded=OTHER, new={**PASTA, "layers": [99]}), "entry 1 (pasta)"),
        (profiles_text(grounded={**PASTA, "alpha": "'x'"}), "entry 1 (pasta)"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_file_changes_nothing_and_is_logged(changing, caplog, text, said):
    server, path, file = changing
    if text is not None:
        path.write_text(text)
    assert not again(server, file)
    (record,) = [r for r in caplog.records if r.name == "saccade.reload"]
    message = record.getMessage()
    assert message.startswith("nothing was reloaded, what was in force stays: ")
    assert said in message
    assert str(path) in message or "--default-profile" in message
    server.chat()
    assert layers_of(server) == [1]
    assert [m["id"] for m in server.http.get("/v1/models").json()["data"]] == [
        MODEL,
        f"{MODEL}+grounded",
    ]


def test_of_two_files_neither_counts_if_one_is_wrong(changing, tmp_path):
    server, path, file = changing
    path.write_text(profiles_text(grounded=OTHER))
    wrong = profiles_file(Path(tmp_path / "none.toml"), server.app.state.services)
    assert not again(server, file, wrong)
    server.chat()
    assert layers_of(server) == [1]


def test_a_request_in_flight_keeps_the_profile_that_it_selected(changing):
    server, path, file = changing
    path.write_text(profiles_text(grounded=OTHER))
    server.chat()
    before = server.engine.requests[-1].plan
    asked = server.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True))
    with asked as response:
        assert again(server, file)
        text = response.read().decode()
    assert server.engine.requests[-1].plan == before
    assert '"intervention_profile":"grounded"' in text.replace(": ", ":")
    server.chat()
    assert layers_of(server) == [2]
