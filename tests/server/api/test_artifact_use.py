"""What becomes of artifacts: deleted, used, named by profiles; by several servers of one folder."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from saccade_interventions.artifacts import write_artifact
from saccade_server.api.reloading import Reloadable, reload
from saccade_testing.api.artifacts import ADMIN, DATA, MODEL, NAME, name
from saccade_testing.api.bodies import chat_body
from saccade_testing.api.server import MakeServer, start_server

PATH = f"/v1/artifacts/{NAME}"
ENTRY = {"method": "steering", "artifact": f"sha256:{NAME}"}


def code(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]["code"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    """Two servers of one folder."""
    folder = tmp_path_factory.mktemp("store")
    made = [start_server(admin_keys=("root",), artifacts=folder) for _ in range(2)]
    yield made
    for server in made:
        server.stop()


@pytest.fixture
def replicas(pair):
    """Two servers of one folder, which has an artifact that nobody used."""
    made = pair
    for server in made:
        server.renew()
        server.app.state.services.artifacts._use.forget(NAME)
    for path in made[0].settings.artifacts.iterdir():
        path.unlink()
    assert made[0].http.put(PATH, content=DATA, headers=ADMIN).status_code == 201
    return made


def listed(server):
    return server.http.get("/v1/artifacts").json()


def test_deleted_by_one_it_is_gone_for_all(replicas):
    one, other = replicas
    assert other.chat(interventions=[ENTRY]).status_code == 200
    gone = one.http.delete(PATH, headers=ADMIN)
    assert gone.json() == {"id": f"sha256:{NAME}", "object": "artifact", "deleted": True}
    for server in replicas:
        assert code(server.http.get(PATH), 404) == "artifact_not_found"
        assert code(server.chat(interventions=[ENTRY]), 404) == "artifact_not_found"
        assert code(server.http.delete(PATH, headers=ADMIN), 404) == "artifact_not_found"
        assert (listed(server)["data"], listed(server)["total_bytes"]) == ([], 0)
    assert other.http.put(PATH, content=DATA, headers=ADMIN).status_code == 201
    assert one.chat(interventions=[ENTRY]).status_code == 200


def test_it_takes_an_admin_key_and_a_name(replicas):
    server = replicas[0]
    assert code(server.http.delete(PATH), 401) == "invalid_api_key"
    wrong = {"authorization": "Bearer x"}
    assert code(server.http.delete(PATH, headers=wrong), 403) == "admin_key_required"
    for path in ("abc", "..%2f..%2fetc", "%00", "0" * 64):
        response = server.http.delete(f"/v1/artifacts/{path}", headers=ADMIN)
        assert response.status_code == 404
    assert server.http.get(PATH).status_code == 200


def test_a_request_in_flight_keeps_what_it_resolved(replicas):
    server = replicas[0]
    with server.http.stream(
        "POST", "/v1/chat/completions", json=chat_body(stream=True, interventions=[ENTRY])
    ) as response:
        assert replicas[1].http.delete(PATH, headers=ADMIN).status_code == 200
        text = response.read().decode()
    assert '"status":"applied"' in text.replace(": ", ":")
    assert server.engine.requests[-1].plan is not None


def test_who_is_sent_the_bytes_gets_all_of_them(make_server: MakeServer, tmp_path: Path):
    server = make_server(admin_keys=("root",), artifacts=tmp_path)
    tensors = {"means": np.random.default_rng(0).normal(size=(4, 4, 2**18))}
    data = write_artifact("head_means", MODEL, tensors)
    (tmp_path / f"{name(data)}.safetensors").write_bytes(data)
    with server.http.stream("GET", f"/v1/artifacts/{name(data)}") as response:
        (tmp_path / f"{name(data)}.safetensors").unlink()
        assert response.read() == data


def test_a_prompt_counts_once_and_a_look_does_not(replicas):
    one, other = replicas
    assert (listed(one)["data"][0]["uses"], listed(one)["data"][0]["last_used"]) == (0, None)
    for server in replicas:
        server.http.get(PATH)
        body = {"interventions": [ENTRY]}
        assert server.http.post("/v1/interventions/validate", json=body).status_code == 200
        # Compiled, resolved for the receipt, and drawn twice: one prompt.
        assert server.chat(interventions=[ENTRY, ENTRY], n=2).status_code == 200
    other.app.state.services.artifacts._use.flush()
    card = listed(one)["data"][0]
    assert card["uses"] == 2
    assert abs(card["last_used"] - time.time()) < 10
    assert card["profile"] is None


def test_a_refused_entry_is_no_use_of_another(replicas):
    missing = {"method": "steering", "artifact": "sha256:" + "0" * 64}
    assert code(replicas[0].chat(interventions=[missing]), 404) == "artifact_not_found"
    assert not list(replicas[0].settings.artifacts.glob(".use-*"))


def test_the_room_is_shown(make_server: MakeServer, tmp_path: Path):
    server = make_server(
        admin_keys=("root",), artifacts=tmp_path, max_artifacts_bytes=5000, artifact_ttl=90.0
    )
    server.http.put(PATH, content=DATA, headers=ADMIN)
    (tmp_path / ".upload-x").write_bytes(bytes(100))
    found = listed(server)
    assert found["total_bytes"] == len(DATA) + 100
    assert (found["max_bytes"], found["ttl_seconds"]) == (5000, 90.0)


def test_what_a_profile_names_stays_until_the_profile_changes(make_server: MakeServer, tmp_path):
    (tmp_path / f"{NAME}.safetensors").write_bytes(DATA)
    profiles = {"calm": {"interventions": [ENTRY]}}
    server = make_server(admin_keys=("root",), artifacts=tmp_path, profiles=profiles)
    assert listed(server)["data"][0]["profile"] == "calm"
    refused = server.http.delete(PATH, headers=ADMIN)
    assert code(refused, 409) == "artifact_in_use"
    assert '"calm"' in refused.json()["error"]["message"]
    services = server.app.state.services
    assert services.artifacts.expire(0.0, services.profiles.artifacts()) == []

    def apply():
        services.profiles.replace({})
        return "none"

    work = reload([Reloadable(tmp_path, lambda: apply)])
    assert asyncio.run_coroutine_threadsafe(work, server.loop).result(10)
    assert server.http.delete(PATH, headers=ADMIN).status_code == 200


# --- expiry, by the store
