"""Discovery and the dry run."""

import pytest

PAI = {"method": "pai", "layers": [1, 2], "heads": [0, 3]}


def validate(server, **body):
    return server.http.post("/v1/interventions/validate", json=body)


def test_the_list(server):
    body = server.http.get("/v1/interventions").json()
    assert body["object"] == "list"
    methods = {item["id"]: item for item in body["data"]}
    assert {"pai", "pasta", "var"} <= set(methods)
    assert methods["pai"]["supported"] is True
    assert methods["pai"]["needs_image"] is True
    assert methods["pai"]["needs_artifact"] is False
    assert methods["act"]["needs_artifact"] is True
    assert methods["pai"]["conflicts_with"] == []
    assert "pai_contrast" in methods["vcd"]["conflicts_with"]


def test_one_method(server, tools):
    body = server.http.get("/v1/interventions/var").json()
    assert body == tools.registry.describe("var")
    assert body["schema"]["properties"]["move_fraction"]["maximum"] == 1


@pytest.mark.parametrize("name", ["vra", "x" * 5000, "%00", "🙂"])
def test_no_such_method(server, name):
    response = server.http.get(f"/v1/interventions/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "intervention_unknown_method"
    assert len(response.content) < 1000


def test_a_rehearsal_without_a_prompt(server, tools):
    body = validate(server, interventions=[PAI]).json()
    assert body["valid"] is True
    assert body["checked"] == ["parameters"]
    (entry,) = body["interventions"]
    (parsed,) = tools.registry.parse([PAI])
    assert entry["entry"] == parsed.normalised()
    assert entry["fingerprint"] == parsed.fingerprint()
    assert "layers" not in entry


def test_a_rehearsal_with_messages(server, tools):
    messages = tools.image_messages(tools.picture)
    body = validate(
        server, model=tools.model, messages=messages, interventions=[PAI, {**PAI, "alpha": 0}]
    ).json()
    assert body["checked"] == ["parameters", "model", "prompt"]
    assert body["prompt_tokens"] > 4
    first, second = body["interventions"]
    assert (first["layers"], first["heads"], first["status"]) == ([1, 2], 4, "ready")
    assert (second["layers"], second["heads"], second["status"]) == ([], 0, "neutral")
    assert not server.engine.requests


def test_a_rehearsal_with_tokens(server):
    entry = {"method": "pasta", "spans": [[0, 2]], "layers": [0]}
    body = validate(server, prompt_tokens=[1, 2, 3], interventions=[entry]).json()
    assert body["prompt_tokens"] == 3
    assert body["interventions"][0]["heads"] == 4


def test_a_rehearsal_names_the_same_fingerprint_as_the_real_thing(server, tools):
    messages = tools.image_messages(tools.picture)
    rehearsed = validate(server, interventions=[PAI]).json()["fingerprint"]
    real = server.chat(messages=messages, interventions=[PAI])
    assert real.headers["x-intervention-fingerprint"] == rehearsed


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "missing_field"),
        ({"interventions": [{"method": "x"}]}, 400, "intervention_unknown_method"),
        ({"interventions": [], "model": "x"}, 404, "model_not_found"),
        ({"interventions": [], "extra": 1}, 400, "invalid_value"),
        ({"interventions": [PAI], "prompt_tokens": [1]}, 400, "intervention_requires_image"),
        ({"interventions": [PAI], "prompt_tokens": [999]}, 400, "invalid_value"),
        (
            {
                "interventions": [],
                "prompt_tokens": [1],
                "messages": [{"role": "user", "content": "x"}],
            },
            400,
            "invalid_value",
        ),
    ],
)
def test_the_same_refusals_as_the_real_thing(server, body, status, code):
    response = validate(server, **body)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
