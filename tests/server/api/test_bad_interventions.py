"""Bad interventions, for every method there is: each gets a clear 4xx, and the next is served."""

import hashlib
import itertools
import json

import numpy as np
import pytest

from saccade_interventions.artifacts import KINDS, read_artifact, write_artifact
from saccade_interventions.registry import Registry
from saccade_server.requests.facts import facts_of
from saccade_testing.api.bodies import PROBED, chat_body, image_messages
from saccade_testing.api.fakes import INFO, BytePrompts
from saccade_testing.api.server import start_server

METHODS = Registry.discover().methods
NAMES = sorted(METHODS)
NUMBERS = ("number", "integer")
MODEL = "sha256:" + "ab" * 32
OTHER_MODEL = "sha256:" + "cd" * 32
MISSING = "sha256:" + "0" * 64
PAIRS = list(itertools.combinations_with_replacement(NAMES, 2))

NOT_NUMBERS = ["0.5", "NaN", "Infinity", True, [0.5], {"value": 0.5}, "", "٣"]
NOT_JSON = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0x1", ".5", "1_000", "9" * 5000]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    server = start_server(artifacts=tmp_path_factory.mktemp("artifacts"))
    for name in NAMES:
        data = probe(name).artifact
        if data is not None:
            server.app.state.services.artifacts.put(read_artifact(data), data)
    yield server
    server.stop()


@pytest.fixture
def bench(started):
    started.renew()
    return Bench(started)


def probe(name):
    return METHODS[name].probe(facts_of(INFO, BytePrompts().special_token_ids))


class Bench:
    """Sends entries with an image and a question, and checks what comes back."""

    def __init__(self, server):
        self.server = server
        self.messages = image_messages(PROBED, text="Describe the image.")

    def entry(self, name, **fields):
        return {**probe(name).entry, **fields}

    def send(self, *entries, **fields):
        return self.server.chat(**{"messages": self.messages, "interventions": entries} | fields)

    def refused(self, response, *codes, param=None, status=400):
        """The response is a clear refusal, and nothing reached the engine."""
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["code"] in codes, error
        assert 10 < len(error["message"]) <= 1000
        if param is not None:
            assert error["param"] is not None
            assert error["param"].startswith(param), error
        assert not self.server.engine.requests

    def bad(self, entry, field, *codes, status=400):
        codes = codes or ("intervention_invalid_params",)
        param = f"interventions[0].{field}"
        self.refused(self.send(entry), *codes, param=param, status=status)

    def serves(self):
        """A request of the ordinary kind is answered."""
        assert self.server.chat().status_code == 200
        self.server.engine.requests.clear()


def numeric_fields(name):
    """Fields that take a single number, with their schemas."""
    for field, schema in METHODS[name].json_schema()["properties"].items():
        for option in schema.get("anyOf", [schema]):
            if option.get("type") in NUMBERS:
                yield field, option


def with_field(*fields):
    return [name for name in NAMES if any(field in METHODS[name].model_fields for field in fields)]


@pytest.mark.parametrize("name", NAMES)
def test_the_good_entry_is_good(bench, name):
    response = bench.send(bench.entry(name))
    assert response.status_code == 200, response.text
    (entry,) = response.json()["interventions_applied"]
    assert entry["status"] in ("applied", "unconfirmed", "no_effect")


@pytest.mark.parametrize("name", NAMES)
def test_numbers(bench, name):
    """Strings, booleans and lists; beyond both bounds; huge either way."""
    for field, schema in numeric_fields(name):
        values = [*NOT_NUMBERS, 1e30, -1e30]
        if "minimum" in schema:
            values.append(schema["minimum"] - 1)
        if "maximum" in schema:
            values.append(schema["maximum"] + 1)
        if "exclusiveMinimum" in schema:
            values.append(schema["exclusiveMinimum"])
        if schema["type"] == "integer":
            values += [0.5, 10**30, -(10**30)]
        codes = ["intervention_invalid_params", "intervention_layer_out_of_range"]
        if field == "image_index":
            codes.append("intervention_target_not_found")
        for value in values:
            options = METHODS[name].json_schema()["properties"][field].get("anyOf", [])
            if isinstance(value, list) and any(o.get("type") == "array" for o in options):
                continue
            bench.bad(bench.entry(name, **{field: value}), field, *codes)
    bench.serves()


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_not_json(bench, name):
    fields = [field for field, _ in numeric_fields(name)] or ["version"]
    body = chat_body(
        messages=bench.messages, interventions=[bench.entry(name, **{fields[0]: "HERE"})]
    )
    for literal in NOT_JSON:
        content = json.dumps(body).replace('"HERE"', literal).encode()
        headers = {"content-type": "application/json"}
        response = bench.server.http.post("/v1/chat/completions", content=content, headers=headers)
        bench.refused(response, "invalid_json", "intervention_invalid_params")
    bench.serves()


@pytest.mark.parametrize("name", NAMES)
def test_names_and_versions(bench, name):
    bench.bad(bench.entry(name, strength_=1), "strength_", "intervention_unknown_field")
    bench.bad(bench.entry(name, params={}), "params", "intervention_unknown_field")
    bench.bad(bench.entry(name, version="0"), "version", "intervention_version_mismatch")
    bench.bad(bench.entry(name, method=f"{name}x"), "method", "intervention_unknown_method")
    for wrong in (None, 1, ["var"], {}):
        bench.bad(bench.entry(name, method=wrong), "method")
    for field in bench.entry(name):
        if field != "method":
            bench.bad(bench.entry(name, **{field: {"no": "such thing"}}), field, *HEADS_TOO)
    bench.serves()


HEADS_TOO = ("intervention_invalid_params", "intervention_head_out_of_range")


@pytest.mark.parametrize("name", with_field("layers"))
def test_layers(bench, name):
    beyond = "intervention_layer_out_of_range"
    invalid = "intervention_invalid_params"
    # A method that takes no early layer may refuse before it looks for the last one.
    for layers in ([99], [1, 10**9], [-1]):
        bench.bad(bare(bench, name, layers=layers), "layers", beyond, invalid)
    for layers in ([], [1, 1], [1.5], ["1"], [True], "some", 1, {"1": 1}, [[1]], [None]):
        bench.bad(bare(bench, name, layers=layers), "layers", beyond, invalid)
    bench.serves()


@pytest.mark.parametrize("name", with_field("heads"))
def test_heads_are_query_heads_of_the_model(bench, name):
    """The model has four, on two key heads: what is no query head is refused, and says so."""
    beyond = "intervention_head_out_of_range"
    for heads in ({"1": [4]}, {"1": [0, 10**9]}, {"3": [-1]}):
        bench.bad(bare(bench, name, heads=heads), "heads", beyond)
    response = bench.send(bare(bench, name, heads={"1": [4]}))
    assert "query head" in response.json()["error"]["message"]
    assert "key-value heads" in response.json()["error"]["message"]
    bench.bad(bare(bench, name, heads={"9": [0]}), "heads", "intervention_layer_out_of_range")
    for heads in ({}, {"1": []}, {"1": [0, 0]}, {"1": 0}, {"-1": [0]}, {"x": [0]}, {"01": [0]}):
        bench.bad(bare(bench, name, heads=heads), "heads")
    for heads in ("some", 3, True, [], [0.5], ["0"]):
        bench.bad(bare(bench, name, heads=heads), "heads", *HEADS_TOO)
    bench.serves()


def bare(bench, name, **fields):
    """An entry that names its places in ``fields`` alone."""
    places = ("layers", "heads", "artifact")
    entry = bench.entry(name)
    needed = {"artifact"} if METHODS[name].needs_artifact and "heads" not in fields else set()
    kept = {key: value for key, value in entry.items() if key not in places or key in needed}
    return {**kept, **fields}


@pytest.mark.parametrize("name", with_field("rows"))
def test_rows(bench, name):
    for rows in ("some", "", "prompt+", "+", "prompt generated", "PROMPT", 3, ["prompt"], None):
        bench.bad(bench.entry(name, rows=rows), "rows")
    bench.serves()


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].needs_image])
def test_images(bench, name):
    text = [{"role": "user", "content": "Describe the image."}]
    without = bench.send(bench.entry(name), messages=text)
    bench.refused(without, "intervention_requires_image", param="interventions[0]")
    if "image_index" in METHODS[name].model_fields:
        entry = bench.entry(name, image_index=1)
        bench.bad(entry, "image_index", "intervention_target_not_found")
    bench.serves()


@pytest.mark.parametrize("name", with_field("spans"))
def test_spans(bench, name):
    entry = {**bench.entry(name)}
    entry.pop("highlight", None)
    outside = "intervention_target_not_found"
    for spans in ([[0, 10**6]], [[0, 1], [5000, 5001]], [[10**18, 10**18 + 1]]):
        bench.bad({**entry, "spans": spans}, "spans", outside)
    for spans in ([[3, 1]], [[2, 2]], [[-1, 2]], [[0]], [[0, 1, 2]], [[0.0, 1]], ["01"], "all", 3):
        bench.bad({**entry, "spans": spans}, "spans")
    bench.bad({**entry, "spans": [[0, 1]] * 1025}, "spans")
    bench.serves()


def test_words_that_are_not_there(bench):
    entry = bench.entry("pasta", highlight=["nowhere"])
    bench.bad(entry, "highlight[0]", "intervention_target_not_found")
    for highlight in ([], [""], [3], "word", [None], ["a"] * 17):
        bench.bad(bench.entry("pasta", highlight=highlight), "highlight")


@pytest.mark.parametrize("name", with_field("artifact"))
def test_artifacts(bench, name):
    def named(artifact):
        return {**bare(bench, name), "artifact": artifact}

    bench.bad(named(MISSING), "artifact", "artifact_not_found", status=404)
    digest = "0" * 64
    for wrong in (digest, f"sha256:{digest[1:]}", f"sha256:{'G' * 64}", f"md5:{digest}"):
        bench.bad(named(wrong), "artifact")
    for wrong in ("../../etc/passwd", f"sha256:../{digest}", "", 3, ["x"], {"sha256": digest}):
        bench.bad(named(wrong), "artifact")
    mismatch = "intervention_artifact_mismatch"
    accepted = []
    for kind in KINDS:
        bench.bad(named(keep(bench.server, kind, OTHER_MODEL)), "artifact", mismatch)
        response = bench.send(named(keep(bench.server, kind, MODEL)))
        if response.status_code == 200:
            accepted.append(kind)
            bench.server.engine.requests.clear()
        else:
            bench.refused(response, mismatch, param="interventions[0].artifact")
    assert accepted
    assert len(accepted) < len(KINDS)
    bench.serves()


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].needs_artifact])
def test_a_method_that_needs_an_artifact_refuses_without(bench, name):
    response = bench.send(bare(bench, name) | {"artifact": None})
    bench.refused(response, "intervention_invalid_params", param="interventions[0]")
    entry = {key: value for key, value in bench.entry(name).items() if key != "artifact"}
    bench.refused(bench.send(entry), "intervention_invalid_params", param="interventions[0]")


def keep(server, kind, model):
    """Put an artifact where another server's operator might have put it: into the folder."""
    sizes = {"n": 1, "hidden_size": 32, "head_dim": 8, "layers": 4, "heads": 4}
    tensors = {
        name: np.full([sizes.get(dim, dim) for dim in spec.dims], 2 if name == "scale" else 1)
        for name, spec in KINDS[kind].items()
        if spec.required
    }
    if kind == "density":
        tensors["covariances"] = tensors["covariances"] * np.eye(tensors["covariances"].shape[-1])
    data = write_artifact(kind, model, tensors)
    digest = hashlib.sha256(data).hexdigest()
    (server.settings.artifacts / f"{digest}.safetensors").write_bytes(data)
    return f"sha256:{digest}"


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_every_pair_runs_or_says_why_not(bench, first, second):
    response = bench.send(bench.entry(first), bench.entry(second))
    listed = bench.server.http.get("/v1/interventions").json()["data"]
    conflicts = {item["id"]: item["conflicts_with"] for item in listed}
    assert (second in conflicts[first]) == (first in conflicts[second])
    assert (second in conflicts[first]) == (response.status_code == 400)
    if response.status_code == 200:
        applied = response.json()["interventions_applied"]
        assert [entry["method"] for entry in applied] == [first, second]
        assert "neutral" not in {entry["status"] for entry in applied}
        return
    bench.refused(response, "intervention_conflict", param="interventions[1]")
    message = response.json()["error"]["message"]
    assert f"{first} (interventions[0])" in message
    assert f"{second} (interventions[1])" in message
    bench.serves()


def test_too_many_and_too_much(bench):
    many = bench.send(*[bench.entry("pai")] * 17)
    bench.refused(many, "intervention_spec_too_large", param="interventions", status=413)
    long = bench.send(bench.entry("pasta", highlight=["x" * 70_000]))
    bench.refused(long, "intervention_spec_too_large", param="interventions", status=413)
    for wrong in ("var", {"method": "var"}, 3, True):
        response = bench.server.chat(messages=bench.messages, interventions=wrong)
        bench.refused(response, "intervention_invalid_params", param="interventions")
    for wrong in ("var", None, [], 3):
        bench.refused(bench.send(wrong), "intervention_invalid_params", param="interventions[0]")
    bench.serves()
