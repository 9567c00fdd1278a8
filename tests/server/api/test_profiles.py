"""Profiles: named bundles, by model name, field and header; what they refuse and report."""

import asyncio
import json
from pathlib import Path

import openai
import pytest

from saccade_server.api.app import create_app
from saccade_server.api.settings import ApiSettings
from saccade_server.requests.profiles import ProfileError, load_profiles, read_profiles
from saccade_testing.api.bodies import MODEL, chat_body
from saccade_testing.api.fakes import BytePrompts, FakeEngine
from saccade_testing.api.server import REGISTRY, MakeServer, start_server

PASTA = {"method": "pasta", "spans": [[0, 2]], "layers": [1], "alpha": 0.5}
OTHER = {"method": "pasta", "spans": [[0, 2]], "layers": [2], "alpha": 0.25}
PROFILES = {
    "grounded": {"description": "Looks closer.", "interventions": [PASTA]},
    "plain.v2": {"interventions": []},
}


@pytest.fixture(scope="module")
def started():
    server = start_server(profiles=PROFILES)
    yield server
    server.stop()


@pytest.fixture
def serving(started):
    started.renew()
    return started


def error(response, status, code, param):
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert (found["code"], found["param"]) == (code, param)


def ran(body):
    return [entry["method"] for entry in body.get("interventions_applied", [])]


def test_they_are_listed_also_as_models(serving):
    data = serving.http.get("/v1/profiles").json()["data"]
    assert [item["id"] for item in data] == list(PROFILES)
    assert data[0]["description"] == "Looks closer."
    assert data[0]["interventions"] == [PASTA]
    assert data[0]["model"] == f"{MODEL}+grounded"
    with serving.openai() as client:
        names = [model.id for model in client.models.list()]
        assert names == [MODEL, f"{MODEL}+grounded", f"{MODEL}+plain.v2"]
        assert client.models.retrieve(f"{MODEL}+grounded").id == names[1]
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(f"{MODEL}+other")


def test_the_official_client_chooses_one_by_its_model_name(serving):
    with serving.openai() as client:
        messages = [{"role": "user", "content": "Hi"}]
        name = f"{MODEL}+grounded"
        answer = client.chat.completions.create(model=name, messages=messages)
        assert answer.model == name
        assert answer.intervention_profile == "grounded"
        assert answer.interventions_applied[0]["status"] == "applied"
        stream = client.chat.completions.create(model=name, messages=messages, stream=True)
        chunks = list(stream)
        assert {chunk.model for chunk in chunks} == {name}
        assert chunks[-1].intervention_profile == "grounded"
        text = client.completions.create(model=name, prompt="Hi there", max_tokens=3)
        assert (text.model, text.intervention_profile) == (name, "grounded")
    assert all(request.plan is not None for request in serving.engine.requests)


@pytest.mark.parametrize("way", ["field", "header", "both", "all"])
def test_by_field_and_by_header(serving, way):
    body = chat_body()
    headers = {}
    if way != "header":
        body["intervention_profile"] = "grounded"
    if way != "field":
        headers["X-Intervention-Profile"] = "grounded"
    if way == "all":
        body["model"] += "+grounded"
    response = serving.http.post("/v1/chat/completions", json=body, headers=headers)
    answer = response.json()
    assert ran(answer) == ["pasta"]
    assert answer["intervention_profile"] == "grounded"
    assert answer["model"] == body["model"]
    assert response.headers["x-intervention-profile"] == "grounded"


def test_the_bundle_is_what_the_request_could_have_named_itself(serving):
    by_name = serving.chat(intervention_profile="grounded")
    by_hand = serving.chat(interventions=[PASTA])
    header = "x-intervention-fingerprint"
    assert by_name.headers[header] == by_hand.headers[header]
    one, other = serving.engine.requests[-2:]
    assert one.plan == other.plan


@pytest.mark.parametrize(("entries", "expected"), [([], []), (None, []), ([OTHER], ["pasta"])])
def test_entries_replace_the_bundle(serving, entries, expected):
    answer = serving.chat(model=f"{MODEL}+grounded", interventions=entries).json()
    assert ran(answer) == expected
    assert "intervention_profile" not in answer
    plan = serving.engine.requests[-1].plan
    assert (plan is None) == (not expected)
    if expected:
        assert plan.scores[0].sites[0][0] == 2


def test_an_empty_bundle_is_a_plain_request(serving):
    answer = serving.chat(model=f"{MODEL}+plain.v2").json()
    assert answer["intervention_profile"] == "plain.v2"
    assert "interventions_applied" not in answer
    assert serving.engine.requests[-1].plan is None


def test_the_list_as_a_text_in_vllm_xargs(serving):
    text = json.dumps([PASTA])
    assert ran(serving.chat(vllm_xargs={"interventions": text}).json()) == ["pasta"]
    same = serving.chat(vllm_xargs={"interventions": text}, interventions=[{**PASTA}])
    assert ran(same.json()) == ["pasta"]
    for empty in ("[]", "null"):
        assert ran(serving.chat(vllm_xargs={"interventions": empty}).json()) == []
    assert ran(serving.chat(vllm_xargs={}).json()) == []


@pytest.mark.parametrize(
    ("fields", "headers", "status", "code", "param"),
    [
        ({"model": "saccade-test+nope"}, {}, 404, "model_not_found", "model"),
        ({"model": "+grounded"}, {}, 404, "model_not_found", "model"),
        ({"model": "saccade-test+"}, {}, 404, "model_not_found", "model"),
        (
            {"intervention_profile": "nope"},
            {},
            404,
            "profile_not_found",
            "intervention_profile",
        ),
        ({"intervention_profile": 3}, {}, 400, "invalid_value", "intervention_profile"),
        (
            {},
            {"X-Intervention-Profile": "nope"},
            404,
            "profile_not_found",
            "x-intervention-profile",
        ),
        (
            {"model": "saccade-test+grounded", "intervention_profile": "plain.v2"},
            {},
            400,
            "intervention_conflict",
            "intervention_profile",
        ),
        (
            {"intervention_profile": "grounded"},
            {"X-Intervention-Profile": "plain.v2"},
            400,
            "intervention_conflict",
            "x-intervention-profile",
        ),
        (
            {"interventions": [PASTA], "vllm_xargs": {"interventions": json.dumps([OTHER])}},
            {},
            400,
            "intervention_conflict",
            "vllm_xargs.interventions",
        ),
        (
            {"interventions": [], "vllm_xargs": {"interventions": json.dumps([OTHER])}},
            {},
            400,
            "intervention_conflict",
            "vllm_xargs.interventions",
        ),
        ({"vllm_xargs": {"foo": "1"}}, {}, 400, "unsupported_parameter", "vllm_xargs.foo"),
        (
            {"vllm_xargs": {"interventions": [PASTA]}},
            {},
            400,
            "invalid_value",
            "vllm_xargs.interventions",
        ),
        (
            {"vllm_xargs": {"interventions": "[{"}},
            {},
            400,
            "invalid_json",
            "vllm_xargs.interventions",
        ),
        (
            {"vllm_xargs": {"interventions": '[{"method": "pasta", "method": "pai"}]'}},
            {},
            400,
            "invalid_json",
            "vllm_xargs.interventions",
        ),
        (
            {"vllm_xargs": {"interventions": '[{"method": "nope"}]'}},
            {},
            400,
            "intervention_unknown_method",
            "vllm_xargs.interventions[0].method",
        ),
    ],
)
def test_what_disagrees_or_is_not_there(serving, fields, headers, status, code, param):
    body = chat_body(**fields)
    response = serving.http.post("/v1/chat/completions", json=body, headers=headers)
    error(response, status, code, param)
    assert not serving.engine.requests
    assert serving.chat().status_code == 200


def test_a_rehearsal_of_a_profile(serving):
    def validate(**body):
        return serving.http.post("/v1/interventions/validate", json=body)

    for body in ({"intervention_profile": "grounded"}, {"model": f"{MODEL}+grounded"}):
        answer = validate(prompt_tokens=[1, 2, 3, 4], **body).json()
        assert answer["profile"] == "grounded"
        assert answer["interventions"][0]["layers"] == [1]
    assert validate(interventions=[]).json()["profile"] is None
    error(validate(), 400, "missing_field", "interventions")


def test_a_method_that_failed_its_self_test_is_refused(make_server: MakeServer):
    server = make_server(faults={"pasta": "it did nothing"})
    listed = {item["id"]: item for item in server.http.get("/v1/interventions").json()["data"]}
    assert listed["pasta"]["supported"] is False
    assert "it did nothing" in listed["pasta"]["reason"]
    assert listed["pai"]["supported"] is True
    code = "intervention_unsupported_model"
    error(server.chat(interventions=[PASTA]), 400, code, "interventions[0].method")
    assert server.chat().status_code == 200


FILE = """
[profiles.grounded]
description = "Looks closer."
interventions = [{ method = "pasta", spans = [[0, 2]], layers = [1], alpha = 0.5 }]

[profiles.none]
interventions = []
"""


def test_a_file_is_read(tmp_path: Path):
    path = tmp_path / "profiles.toml"
    path.write_text(FILE)
    profiles = load_profiles(path, REGISTRY)
    assert list(profiles) == ["grounded", "none"]
    assert profiles["grounded"].interventions == REGISTRY.parse([PASTA])
    assert profiles["none"].interventions == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[profiles", "profiles.toml"),
        ("x = 1", "unknown key 'x'"),
        ("profiles = 3", "are tables"),
        ("[profiles]\na = 3", "is not a table"),
        ("[profiles.a]\n", "no list of interventions"),
        ("[profiles.a]\ninterventions = 'var'", "no list of interventions"),
        ("[profiles.a]\ninterventions = []\nextra = 1", "unknown key 'extra'"),
        ("[profiles.a]\ninterventions = []\ndescription = 1", "description"),
        ("[profiles.'A b']\ninterventions = []", "cannot be called"),
        ("[profiles.'a+b']\ninterventions = []", "cannot be called"),
        ("[profiles.a]\ninterventions = [{ method = 'nope' }]", "entry 1 (nope): unknown method"),
        ("[profiles.a]\ninterventions = [{ method = 'pai', alpha = nan }]", "entry 1 (pai): alpha"),
        ("[profiles.a]\ninterventions = []\nextra = 1", "known: description, interventions"),
        ("[profiles.a]\ninterventions = []\ndescripton = ''", 'did you mean "description"?'),
        ("[profiles.b]\ninterventions = []\n[ profiles.'a' ]\n", "toml:3: profile 'a' has no list"),
        (
            "[profiles.a]\ninterventions = [{ method = 'pai', alpha = 1979-05-27 }]",
            "profile 'a'",
        ),
    ],
)
def test_a_file_with_a_mistake_stops_the_server(tmp_path: Path, text, words):
    path = tmp_path / "profiles.toml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_profiles(path, REGISTRY)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ProfileError, match="nowhere"):
        load_profiles(tmp_path / "nowhere", REGISTRY)


@pytest.mark.parametrize(
    ("entries", "faults", "words"),
    [
        ([{"method": "pai", "layers": [4]}], {}, "there is no layer 4"),
        ([{"method": "pai", "heads": [4]}], {}, "there is no head 4"),
        ([{"method": "pai"}], {"pai": "it did nothing"}, "did not pass its self-test"),
        (
            [
                {"method": "pasta", "highlight": ["nowhere"], "layers": [0]},
                {"method": "vcd"},
                {"method": "pai_contrast"},
            ],
            {},
            "only one of them can contrast",
        ),
    ],
)
def test_a_profile_that_the_model_cannot_run_stops_the_server(entries, faults, words):
    profiles = read_profiles({"profiles": {"mine": {"interventions": entries}}}, REGISTRY)

    async def start():
        settings = ApiSettings(served_model_name="m")
        parts = (FakeEngine(), BytePrompts(), REGISTRY, settings)
        create_app(*parts, profiles=profiles, faults=faults)

    with pytest.raises(ProfileError, match="profile 'mine'") as caught:
        asyncio.run(start())
    assert words in str(caught.value)


def test_a_profile_may_need_what_a_prompt_may_not_have(make_server: MakeServer):
    """Highlighted words and images depend on the request, so they are no mistake of the file."""
    entries = [{"method": "pasta", "highlight": ["nowhere"], "layers": [0]}, {"method": "pai"}]
    server = make_server(profiles={"mine": {"interventions": entries}})
    response = server.chat(intervention_profile="mine")
    assert response.json()["error"]["code"] == "intervention_target_not_found"
