"""What must be equal behind one address: its digest, what it is made of, who is refused for it."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import msgspec
import pytest

from saccade_server.api import folder_identity as folder_identity_module
from saccade_server.api.app import create_app
from saccade_server.api.deployment import Deployment, deployment_of
from saccade_server.api.expected import DeploymentError, Expected
from saccade_server.api.folder_identity import FILE, folder_identity
from saccade_server.api.reloading import profiles_file
from saccade_server.api.settings import ApiSettings
from saccade_server.requests.profiles import read_profiles
from saccade_testing.api.bodies import chat_body
from saccade_testing.api.fakes import INFO, BytePrompts, FakeEngine
from saccade_testing.api.server import REGISTRY, MakeServer, Server

PROFILE = {"grounded": {"interventions": [{"method": "var"}]}}
OTHER = {"grounded": {"interventions": [{"method": "pai"}]}}
WRITTEN = '[profiles.grounded]\ninterventions = [{{ method = "{}" }}]\n'
HEADER = "X-Saccade-Deployment"


def digest(server: Server) -> str:
    return server.http.get("/version").json()["deployment"]


def digest_of(server: Server) -> str:
    return server.app.state.services.membership.digest


def test_replicas_show_one_digest_everywhere(make_server: MakeServer) -> None:
    one, other = (make_server(profiles=PROFILE, max_requests=n) for n in (3, 4))
    facts = one.http.get("/v1/deployment").json()
    assert facts["deployment"] == digest(one) == digest(other)
    assert re.fullmatch("[0-9a-f]{16}", digest(one))
    for path in ("/ready", "/health"):
        assert one.http.get(path).headers[HEADER] == digest(one)
        other.engine.capacity = False
        busy = other.http.get(path)
        assert (busy.status_code, busy.headers[HEADER]) == (503, digest(one))
    assert facts["facts"]["fingerprint"] == INFO.fingerprint
    assert facts["facts"]["limits"]["context"] == 512


@pytest.mark.parametrize(
    ("info", "offers", "where"),
    [
        ({"fingerprint": "sha256:" + "cd" * 32}, {}, ["fingerprint"]),
        ({"dtype": "bfloat16"}, {}, ["dtype"]),
        ({"batch_invariant": True}, {}, ["batch_invariant"]),
        ({"max_model_len": 256}, {}, ["limits.context"]),
        ({"max_num_seqs": 3}, {}, []),
        ({}, {"served_model_name": "other"}, ["model"]),
        ({}, {"profiles": PROFILE}, ["profiles.grounded"]),
        (
            {},
            {"profiles": PROFILE, "default_profile": "grounded"},
            ["default_profile", "profiles.grounded"],
        ),
        ({}, {"faults": {"var": "it does not show"}}, ["methods"]),
        ({}, {"max_images": 3}, ["limits.max_images"]),
        ({}, {"allow_image_urls": True}, ["limits.allow_image_urls"]),
        ({}, {"api_keys": ("key",)}, []),
        ({}, {"admin_keys": ("key",)}, ["artifacts"]),
    ],
    ids=lambda value: ",".join(value) or "nothing" if isinstance(value, list) else None,
)
def test_what_requests_would_notice_is_part_of_it(info, offers, where) -> None:
    one, two = found(), found(info, **offers)
    assert (one.digest == two.digest) == (not where)
    with nullcontext() if not where else pytest.raises(DeploymentError) as caught:
        Expected(one.digest, one.facts).check(two)
    if where:
        different = str(caught.value).split(": ", 1)[1].split("; ")
        assert [fact.split()[0] for fact in different] == where
        with pytest.raises(DeploymentError, match=f"{two.digest}, expected is {one.digest}"):
            Expected(one.digest).check(two)


def found(info=None, profiles=None, faults=None, **settings) -> Deployment:
    engine = FakeEngine(msgspec.structs.replace(INFO, **info or {}))
    chosen = ApiSettings(**{"served_model_name": "m"} | settings)
    bundles = read_profiles({"profiles": profiles or {}}, REGISTRY)
    app = create_app(engine, BytePrompts(), REGISTRY, chosen, profiles=bundles, faults=faults)
    services = app.state.services
    services.close()
    return deployment_of(services, services.profiles)


def test_a_request_for_another_deployment_is_refused_before_anything_is_read(
    make_server: MakeServer,
) -> None:
    server = make_server(api_keys=("key",))
    other = {HEADER: "0" * 16}
    for method, path in [("POST", "/v1/chat/completions"), ("GET", "/ready"), ("GET", "/v1/x")]:
        refused = server.http.request(method, path, headers=other, content=b"{")
        assert refused.status_code == 503, path
        assert refused.json()["error"]["code"] == "deployment_mismatch"
        assert refused.headers["retry-after"] == "1"
        assert (refused.headers.get(HEADER) == digest_of(server)) == (path == "/ready")
    assert not server.engine.requests
    # who asks about the server hears of it
    for path in ("/live", "/version"):
        key = {"Authorization": "Bearer key"}
        assert server.http.get(path, headers=other | key).status_code == 200


def test_a_request_for_this_deployment_is_answered(server: Server) -> None:
    for wanted in (digest(server), ""):
        answer = server.http.post(
            "/v1/chat/completions", json=chat_body(), headers={HEADER: wanted}
        )
        assert answer.status_code == 200
        assert server.http.get("/ready", headers={HEADER: wanted}).status_code == 200


def test_servers_that_share_their_artifacts_are_one_deployment(
    make_server: MakeServer, tmp_path
) -> None:
    one, two = (make_server(artifacts=tmp_path / "store") for _ in range(2))
    alone = make_server(artifacts=tmp_path / "other")
    assert digest(one) == digest(two) != digest(alone)


def test_profiles_that_make_it_another_deployment_are_not_reloaded(
    make_server: MakeServer, tmp_path
) -> None:
    path, facts = tmp_path / "profiles.toml", tmp_path / "deployment.json"
    path.write_text(WRITTEN.format("var"))
    facts.write_text(make_server(profiles=PROFILE).http.get("/v1/deployment").text)
    server = make_server(profiles=PROFILE, expected_deployment=str(facts))
    before = digest(server)
    file = profiles_file(path, server.app.state.services)
    file.read()()
    assert digest(server) == before
    path.write_text(WRITTEN.format("pai"))
    with pytest.raises(DeploymentError, match=r"profiles\.grounded is"):
        file.read()
    facts.write_text(make_server(profiles=OTHER).http.get("/v1/deployment").text)
    file.read()()
    assert digest(server) == server.http.get("/ready").headers[HEADER] != before


def test_a_folder_is_named_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_identity_module, "WRITTEN_SECONDS", 0.1)
    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(folder_identity, [tmp_path] * 64))
    assert len(names) == 1
    (tmp_path / FILE).write_text("")
    with pytest.raises(OSError, match="remove it, then start again"):
        folder_identity(tmp_path)


def test_a_server_that_is_not_what_is_expected_does_not_start(
    make_server: MakeServer, tmp_path
) -> None:
    server = make_server()
    file = tmp_path / "deployment.json"
    file.write_text(server.http.get("/v1/deployment").text)
    for expected in (digest(server), str(file)):
        make_server(expected_deployment=expected)
        with pytest.raises(DeploymentError, match=digest(server)):
            make_server(expected_deployment=expected, max_n=3)
    with pytest.raises(DeploymentError, match=r"limits\.max_n is 3, not 16"):
        make_server(expected_deployment=str(file), max_n=3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("", "is not JSON"),
        ("[]", "give 16"),
        ('{"deployment": "00"}', "give 16"),
        (json.dumps({"deployment": "0" * 16, "facts": {"model": "m"}}), "changed by hand"),
    ],
)
def test_what_is_no_expectation_is_refused(tmp_path, content, reason) -> None:
    file = tmp_path / "expected"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DeploymentError, match=f"--expect-deployment .*{reason}"):
        Expected.read(str(file))
