"""Discovery and the dry run."""

import msgspec
import numpy as np
import pytest

from saccade_interventions.artifacts import artifact_id, write_artifact
from saccade_testing.api.bodies import MODEL, PICTURE, PROBED, image_messages
from saccade_testing.api.fakes import INFO, FakeEngine
from saccade_testing.api.server import REGISTRY, MakeServer, Server

PAI = {"method": "pai", "layers": [1, 2], "heads": [0, 3]}


BY_PROMPT = {"look_at", "var"}
"""They conflict where a region is a part of an image, which an image may be too small for."""


def validate(server, **body):
    return server.http.post("/v1/interventions/validate", json=body)


def test_the_list(server: Server):
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


def test_one_method(server: Server):
    body = server.http.get("/v1/interventions/var").json()
    assert body == REGISTRY.describe("var")
    assert body["schema"]["properties"]["move_fraction"]["maximum"] == 1


@pytest.mark.parametrize("name", ["vra", "x" * 5000, "%00", "🙂"])
def test_no_such_method(server: Server, name):
    response = server.http.get(f"/v1/interventions/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "intervention_unknown_method"
    assert len(response.content) < 1000


def test_a_rehearsal_without_a_prompt(server: Server):
    body = validate(server, interventions=[PAI]).json()
    assert body["valid"] is True
    assert body["checked"] == ["parameters", "model"]
    assert body["depends_on_prompt"] == [
        "interventions[0] needs 1 image",
        "whether the prompt's length suits them",
    ]
    (entry,) = body["interventions"]
    (parsed,) = REGISTRY.parse([PAI])
    assert entry["entry"] == parsed.normalised()
    assert entry["fingerprint"] == parsed.fingerprint()
    assert "layers" not in entry


def test_without_a_prompt_pairs_conflict_as_with_one(server: Server):
    """All ordered pairs of methods; a refusal is the one that a real request gets."""
    services = server.app.state.services
    kinds = REGISTRY.methods.values()
    probes = [k.probe(services.facts).entry for k in kinds if not k.needs_artifact]
    messages = image_messages(PROBED, text="Describe the image.")
    conflicts = 0
    for one in probes:
        for other in probes:
            pair = [one, other]
            rehearsed = validate(server, interventions=pair)
            refused = other["method"] in services.conflicts[one["method"]]
            known = refused and {one["method"], other["method"]} != BY_PROMPT
            assert rehearsed.status_code == (400 if known else 200), (pair, rehearsed.text)
            conflicts += refused
            if refused:
                real = validate(server, interventions=pair, messages=messages)
                assert rehearsed.json() == real.json() if known else real.status_code == 400
                assert real.json()["error"]["code"] == "intervention_conflict"
    assert conflicts > 10


@pytest.fixture
def advised(make_server: MakeServer):
    """A server with an artifact that says where and how strongly to use it, and its digest."""
    server = make_server(admin_keys=("root",))
    facts = server.app.state.services.facts
    tensors = {
        "vectors": np.random.default_rng(0).normal(size=(2, facts.hidden_size)),
        "layers": np.array([1, 2]),
    }
    defaults = {"layers": [2], "coefficient": 0.5}
    data = write_artifact("vectors", facts.fingerprint, tensors, defaults=defaults)
    digest = artifact_id(data)
    headers = {"authorization": "Bearer root"}
    path = f"/v1/artifacts/{digest.removeprefix('sha256:')}"
    assert server.http.put(path, content=data, headers=headers).json()["defaults"] == defaults
    assert server.http.get("/v1/artifacts").json()["data"][0]["defaults"] == defaults
    return server, digest


@pytest.mark.parametrize("with_prompt", [False, True])
def test_a_rehearsal_fills_in_what_the_artifact_says(advised, with_prompt):
    server, digest = advised
    entry = {"method": "steering", "artifact": digest}
    prompt = {"prompt_tokens": [1, 2, 3]} if with_prompt else {}
    (implicit,) = validate(server, interventions=[entry], **prompt).json()["interventions"]
    spelled_out = entry | {"layers": [2], "coefficient": 0.5}
    (explicit,) = validate(server, interventions=[spelled_out], **prompt).json()["interventions"]
    assert implicit["entry"] == explicit["entry"]
    assert implicit["entry"]["coefficient"] == 0.5
    assert implicit.get("layers") == explicit.get("layers") == ([2] if with_prompt else None)
    (parsed,) = REGISTRY.parse([entry])
    assert implicit["fingerprint"] == parsed.fingerprint()


def test_a_receipt_says_what_the_artifact_filled_in(advised):
    server, digest = advised

    def receipts(**fields):
        entry = {"method": "steering", "artifact": digest, **fields}
        sent = {"prompt": [1, 2, 3], "max_tokens": 2, "interventions": [entry, {**entry}]}
        return server.http.post("/v1/completions", json=sent).json()["interventions_applied"]

    for receipt in receipts():
        assert receipt["filled_in"] == {"layers": [2], "coefficient": 0.5}
        assert (receipt["layers"], receipt["status"]) == ([2], "applied")
    assert [each["filled_in"] for each in receipts(coefficient=1)] == [{"layers": [2]}] * 2
    assert [each["filled_in"] for each in receipts(coefficient=1, layers=[1])] == [{}] * 2


HIGHLIGHT = {"method": "pasta", "highlight": ["zebra", "zebra crossing"], "layers": [0]}


@pytest.mark.parametrize(
    "entries",
    [
        [HIGHLIGHT],
        [{"method": "pasta", "spans": [[100, 200]], "layers": [0]}],
        [{"method": "pai", "image_index": 7}],
        [{"method": "pai", "image_index": 0}, {"method": "var", "image_index": 1}],
        [HIGHLIGHT, {"method": "var"}, {"method": "pai"}],
        [{**HIGHLIGHT, "mode": "exclude"}],
        [],
    ],
)
def test_what_some_prompt_could_run_is_valid(server: Server, entries):
    answer = validate(server, interventions=entries)
    assert answer.status_code == 200, answer.text
    assert bool(answer.json()["depends_on_prompt"]) == bool(entries)


@pytest.mark.parametrize(
    ("entries", "code", "param"),
    [
        ([{"method": "pai", "layers": [4]}], "intervention_layer_out_of_range", ".layers[0]"),
        ([{"method": "pai", "heads": [4]}], "intervention_head_out_of_range", ".heads[0]"),
        (
            [{"method": "pasta", "spans": [[0, 600]], "layers": [0]}],
            "intervention_target_not_found",
            ".spans[0]",
        ),
        ([{"method": "var", "sink_dims": [99]}], "intervention_invalid_params", ".sink_dims[0]"),
        (
            [{"method": "function_vector", "artifact": "sha256:" + "0" * 64, "layer": 0}],
            "artifact_not_found",
            ".artifact",
        ),
    ],
)
def test_what_no_prompt_could_run_is_refused_without_one(server: Server, entries, code, param):
    error = validate(server, interventions=entries).json()["error"]
    assert (error["code"], error["param"]) == (code, f"interventions[0]{param}")


def test_a_model_of_text_refuses_images_without_a_prompt(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server.prompts, "accepts_images", False, raising=False)
    info = msgspec.structs.replace(INFO, accepts_images=False)
    monkeypatch.setattr(server.engine, "info", info)
    error = validate(server, interventions=[PAI]).json()["error"]
    assert error["code"] == "intervention_unsupported_model"


def test_what_is_too_large_for_the_server_is_not_valid(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    """Contrast runs as two sequences."""
    monkeypatch.setattr(server.engine, "info", msgspec.structs.replace(INFO, max_num_seqs=1))
    fields = {"messages": image_messages(PICTURE), "interventions": [{"method": "vcd"}]}
    rehearsed, real = validate(server, **fields), server.chat(**fields)
    assert rehearsed.status_code == 400
    assert rehearsed.json() == real.json()


ACT = {"method": "act", "heads": {"1": [0]}}
ONE_STEP = {"act": (ACT, 100), "vhr": ({"method": "vhr"}, 150)}


@pytest.mark.parametrize("method", ONE_STEP)
def test_a_prompt_too_long_for_one_step(make_server: MakeServer, method):
    """By name and place, before anything runs; a shorter prompt, or another method, is served."""
    entry, tokens = ONE_STEP[method]
    server = make_server(FakeEngine(msgspec.structs.replace(INFO, max_batched_tokens=tokens)))
    plain = {"method": "pasta", "highlight": ["x"], "layers": [1]}
    messages = image_messages(PICTURE, text="x" * 100)
    body = {"messages": messages, "interventions": [plain, entry], "max_tokens": 2}
    real = server.chat(**body)
    assert real.status_code == 400
    error = real.json()["error"]
    assert error["code"] == "intervention_invalid_params"
    assert error["param"] == "interventions[1]"
    assert error["message"].startswith(f"{method} needs the whole prompt prefilled in one step, ")
    assert error["message"].endswith(f"computes {tokens} tokens a step (max_batched_tokens)")
    rehearsal = {"messages": messages, "interventions": [plain, entry]}
    told = validate(server, **rehearsal)
    assert (told.status_code, told.json()) == (400, real.json())
    assert not server.engine.requests
    assert server.chat(**{**body, "interventions": [plain]}).status_code == 200
    short = image_messages(PICTURE, text="x")
    assert server.chat(messages=short, interventions=[plain, entry]).status_code == 200


def test_fields_of_a_template_need_messages(server: Server):
    for fields in ({}, {"prompt_tokens": [1]}):
        answer = validate(server, interventions=[], enable_thinking=False, **fields)
        assert answer.json()["error"]["param"] == "enable_thinking"


def test_a_rehearsal_with_messages(server: Server):
    messages = image_messages(PICTURE)
    body = validate(
        server, model=MODEL, messages=messages, interventions=[PAI, {**PAI, "alpha": 0}]
    ).json()
    assert body["checked"] == ["parameters", "model", "prompt"]
    assert body["prompt_tokens"] > 4
    assert body["depends_on_prompt"] == []
    first, second = body["interventions"]
    assert (first["layers"], first["heads"], first["status"]) == ([1, 2], 4, "ready")
    assert (second["layers"], second["heads"], second["status"]) == ([], 0, "neutral")
    assert not server.engine.requests


def test_a_rehearsal_with_tokens(server: Server):
    entry = {"method": "pasta", "spans": [[0, 2]], "layers": [0]}
    body = validate(server, prompt_tokens=[1, 2, 3], interventions=[entry]).json()
    assert body["prompt_tokens"] == 3
    assert body["interventions"][0]["heads"] == 4


def test_a_rehearsal_names_the_same_fingerprint_as_the_real_thing(server: Server):
    messages = image_messages(PICTURE)
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
def test_the_same_refusals_as_the_real_thing(server: Server, body, status, code):
    response = validate(server, **body)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
