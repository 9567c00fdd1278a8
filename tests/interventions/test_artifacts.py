import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from saccade_interventions.artifacts import (
    MOST_BYTES,
    MOST_ENTRIES,
    ArtifactError,
    check_for,
    read_artifact,
    write_artifact,
)
from saccade_interventions.context import Context, Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.model_facts import ModelFacts

MODEL = "sha256:" + "a" * 64
FACTS = ModelFacts(layers=6, heads=4, kv_heads=2, head_dim=8, hidden_size=64, fingerprint=MODEL)
META = {"saccade": "1", "kind": "vectors", "model": MODEL}
RNG = np.random.default_rng(0)
GOOD = {
    "heads": {"heads": np.array([[1, 2], [0, 3]])},
    "vectors": {"vectors": RNG.normal(size=(3, 64)), "layers": np.array([2, 6, 0])},
    "subspaces": {"vectors": RNG.normal(size=(3, 64)), "layers": np.array([6, 0, 6])},
    "low_rank": {
        "read": RNG.normal(size=(3, 64)),
        "write": RNG.normal(size=(3, 64)),
        "shift": RNG.normal(size=3),
        "layers": np.array([6, 0, 6]),
    },
    "diagonal": {
        "scale": RNG.normal(size=(2, 64)),
        "shift": RNG.normal(size=(2, 64)),
        "layers": np.array([6, 0]),
    },
    "head_vectors": {
        "heads": np.array([[5, 3], [0, 0]]),
        "vectors": RNG.normal(size=(2, 8)),
        "sigma": np.array([0.0, 2.0]),
    },
    "head_means": {"means": RNG.normal(size=(6, 4, 8))},
    "sinks": {"dims": np.array([63, 0])},
    "density": {
        "weights": np.array([0.25, 0.75]),
        "means": RNG.normal(size=(2, 3)),
        "covariances": np.array([np.eye(3), [[2, 0.5, 0], [0.5, 1, 0], [0, 0, 1e-4]]]),
        "center": RNG.normal(size=3),
        "scale": np.array([1, 0.5, 3]),
    },
}


def header_of(data: bytes) -> dict:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size])


def with_header(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def changed(edit, kind="vectors") -> bytes:
    """A good artifact with a header that ``edit`` changed."""
    data = write_artifact(kind, MODEL, GOOD[kind])
    size = int.from_bytes(data[:8], "little")
    header = header_of(data)
    edit(header)
    return with_header(header, data[8 + size :])


@pytest.mark.parametrize("kind", GOOD)
def test_round_trip(kind):
    data = write_artifact(kind, MODEL, GOOD[kind], notes="σ from 200 prompts")
    again = dict(reversed(GOOD[kind].items()))
    assert write_artifact(kind, MODEL, again, notes="σ from 200 prompts") == data
    artifact = read_artifact(data)
    assert (artifact.kind, artifact.model, artifact.notes) == (kind, MODEL, "σ from 200 prompts")
    assert artifact.digest.startswith("sha256:")
    assert len(artifact.digest) == 71
    check_for(artifact, FACTS)
    assert artifact.tensors.keys() == GOOD[kind].keys()
    for name, values in GOOD[kind].items():
        found = artifact.tensors[name]
        np.testing.assert_array_equal(found, values.astype(found.dtype))
        assert not found.flags.writeable
        np.testing.assert_array_equal(load(data)[name], found)  # the library reads ours


def test_reads_what_the_library_writes():
    tensors = {
        "vectors": GOOD["vectors"]["vectors"].astype(np.float32),
        "layers": GOOD["vectors"]["layers"].astype(np.int32),
    }
    artifact = read_artifact(save(tensors, metadata=META))
    np.testing.assert_array_equal(artifact.tensors["vectors"], tensors["vectors"])


def test_equal_digests_are_equal_artifacts():
    data = write_artifact("sinks", MODEL, GOOD["sinks"])
    assert read_artifact(data) == read_artifact(data)
    assert read_artifact(data) != read_artifact(write_artifact("heads", MODEL, GOOD["heads"]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        pickle.dumps(GOOD),
        b"PK\x03\x04" + bytes(64),
        (2**63).to_bytes(8, "little") + b"{}",
        (10).to_bytes(8, "little") + b"{}",
        with_header(b"[" * 50_000, b""),
        with_header(b"{" + b'"a":{' * 10_000, b""),
        with_header(b'{"a":' + b"1" * 5000 + b"}", b""),
        with_header(b"\xff\xfe{}", b""),
        with_header(b'{"a": NaN}', b""),
        with_header({}, b""),
        with_header({"__metadata__": META}, b""),
        with_header({"__metadata__": {"kind": "vectors"}}, b""),
    ],
    ids=range(14),
)
def test_what_is_no_artifact(data):
    with pytest.raises(ArtifactError):
        read_artifact(data)


def test_truncated_anywhere():
    data = write_artifact("head_vectors", MODEL, GOOD["head_vectors"])
    for size in range(len(data)):
        with pytest.raises(ArtifactError):
            read_artifact(data[:size])
    with pytest.raises(ArtifactError, match="behind the last"):
        read_artifact(data + b"\0")


def test_too_large():
    with pytest.raises(ArtifactError, match="at most"):
        read_artifact(bytes(MOST_BYTES + 1))


def metadata(**fields):
    return lambda header: header["__metadata__"].update(fields)


def tensor(**fields):
    return lambda header: header["vectors"].update(fields)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (metadata(kind="pickles"), "unknown kind"),
        (metadata(kind=["vectors"]), "strings"),
        (metadata(saccade="2"), "lack"),
        (metadata(author="me"), "unknown metadata"),
        (metadata(model="llama"), "fingerprint"),
        (metadata(model=MODEL + "\n"), "fingerprint"),
        (metadata(notes="x" * 20_000), "at most"),
        (lambda h: h.update(extra=h["layers"]), "unknown tensor"),
        (lambda h: h.pop("layers"), "missing"),
        (lambda h: h.update(layers=7), "data_offsets"),
        (lambda h: h.update(layers=h["layers"] | {"data_offsets": [0, 768]}), "disagree"),
        (lambda h: h.update(layers=h["layers"] | {"data_offsets": [4, 16]}), "gap|overlap"),
        (tensor(dtype="F64"), "type is F32"),
        (tensor(dtype=[]), "type is F32"),
        (tensor(shape=[64, 3]), "shape is"),
        (tensor(shape=[3, 64, 1]), "shape is"),
        (tensor(shape=[3, -64]), "shape is"),
        (tensor(shape=[3, 2**40]), "shape is"),
        (tensor(shape=[3, True]), "shape is"),
        (tensor(shape=[3, 64.0]), "shape is"),
        (tensor(shape=[3, 0]), "shape is"),
        (tensor(shape=[3, 65]), "disagree"),
        (tensor(data_offsets=[12, 8]), "disagree"),
        (tensor(data_offsets=[2**30, 2**30 + 768]), "two offsets"),
    ],
)
def test_lying_headers(edit, message):
    with pytest.raises(ArtifactError, match=message):
        read_artifact(changed(edit))


DEFAULTS = {
    "vectors": {"layers": [6, 2], "coefficient": 0.5},
    "subspaces": {"layers": [6], "coefficient": 0.5},
    "low_rank": {"layers": [0, 6], "coefficient": -2.0},
    "diagonal": {"layers": [0], "coefficient": 1.0, "site": "residual"},
    "head_vectors": {"alpha": 2.0},
}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_round_trip(kind):
    data = write_artifact(kind, MODEL, GOOD[kind], defaults=DEFAULTS[kind])
    artifact = read_artifact(data)
    assert artifact.defaults == DEFAULTS[kind]
    with pytest.raises(TypeError):
        artifact.defaults["coefficient"] = 2.0
    plain = read_artifact(write_artifact(kind, MODEL, GOOD[kind]))
    assert plain.defaults == {}
    assert plain.digest != artifact.digest
    again = dict(reversed(DEFAULTS[kind].items()))
    assert write_artifact(kind, MODEL, GOOD[kind], defaults=again) == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the text of a JSON object"),
        ("{", "not the text of a JSON object"),
        ("[" * 5000, "not the text of a JSON object"),
        ('{"a":' * 2000, "not the text of a JSON object"),
        ('{"layers":[2],"layers":[6]}', "not the text of a JSON object"),
        (" " * 20_000, "at most 16384 characters"),
        ("[2]", "defaults must be an object"),
        ("null", "defaults must be an object"),
        ("{}", "set no field"),
        ('{"layers":null}', "set no field"),
        ('{"rows":"all"}', "defaults.rows is not a field"),
        ('{"alpha":2}', "defaults.alpha is not a field"),
        ('{"layers":[]}', "at least 1 entry"),
        ('{"layers":2}', "must be a list"),
        ('{"layers":[2,2]}', "named twice"),
        ('{"layers":[true]}', "whole number"),
        ('{"layers":[2.0]}', "whole number"),
        ('{"layers":[-1]}', "at least 0"),
        ('{"layers":[2,3]}', "a residual that has no vector"),
        ('{"layers":[' + "9" * 3000 + "]}", "a residual that has no vector"),
        ('{"coefficient":"1"}', "must be a number"),
        ('{"coefficient":true}', "must be a number"),
        ('{"coefficient":NaN}', "finite number"),
        ('{"coefficient":1e999}', "finite number"),
        ('{"coefficient":1001}', "at most 1000"),
        ('{"coefficient":-1001}', "at least -1000"),
        ('{"coefficient":0}', "changes nothing"),
        ('{"site":"head_output"}', "defaults.site"),
        ('{"site":1}', "defaults.site"),
        ('{"site":null}', "set no field"),
    ],
    ids=range(30),
)
def test_lying_defaults(text, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        read_artifact(changed(metadata(defaults=text)))
    assert len(str(caught.value)) < 200


def test_defaults_of_other_kinds():
    with pytest.raises(ArtifactError, match="kind heads have no defaults"):
        write_artifact("heads", MODEL, GOOD["heads"], defaults={"layers": [1]})
    bare = {name: GOOD["head_vectors"][name] for name in ("heads", "vectors")}
    with pytest.raises(ArtifactError, match="counts sigma"):
        write_artifact("head_vectors", MODEL, bare, defaults={"alpha": 2.0})
    with pytest.raises(ArtifactError, match="at most 2"):
        write_artifact("subspaces", MODEL, GOOD["subspaces"], defaults={"coefficient": 3.0})
    with pytest.raises(ArtifactError, match="alpha is required"):
        read_artifact(changed(metadata(defaults="{}"), "head_vectors"))


@pytest.mark.parametrize("edit", [metadata(notes="\ud800"), lambda h: h.update({"\udfff": 1})])
def test_lone_surrogates(edit):
    """In a value and in a name; a pair of them is a character."""
    with pytest.raises(ArtifactError, match="lone surrogate"):
        read_artifact(changed(edit))
    assert read_artifact(changed(metadata(notes="\U0001f600"))).notes == "\U0001f600"


@pytest.mark.parametrize(("kind", "name"), [("heads", "heads"), ("sinks", "dims")])
def test_lists_are_bounded_before_they_are_sorted(kind, name, monkeypatch: pytest.MonkeyPatch):
    """Of entries; pairs are compared as pairs, wherever the numbers are large."""
    high = np.iinfo(np.int32).max
    values = high - np.arange(2 * MOST_ENTRIES, dtype=np.int32).reshape(-1, 2)
    values = values if name == "heads" else values[:, 0]
    read_artifact(write_artifact(kind, MODEL, {name: values}))
    twice = np.concatenate([values[:-1], values[:1]])
    with pytest.raises(ArtifactError, match="twice"):
        write_artifact(kind, MODEL, {name: twice})
    monkeypatch.delattr(np, "unique")
    with pytest.raises(ArtifactError, match="at most 65536 entries, got 65537"):
        write_artifact(kind, MODEL, {name: np.concatenate([values, values[:1]])})


def test_heads_that_share_a_number_are_different_heads():
    pairs = np.array([[0, 1], [1, 0], [0, 0], [1, 1], [2**31 - 1, 0], [0, 2**31 - 1]])
    read_artifact(write_artifact("heads", MODEL, {"heads": pairs}))


def test_names_that_occur_twice():
    data = write_artifact("sinks", MODEL, GOOD["sinks"])
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].replace(b'"dims":', b'"dims":{},"dims":')
    with pytest.raises(ArtifactError, match="twice in the header"):
        read_artifact(with_header(text, data[8 + size :]))


@pytest.mark.parametrize(
    ("kind", "tensors", "message"),
    [
        ("vectors", {"vectors": np.full((1, 4), np.nan), "layers": np.array([0])}, "not finite"),
        ("vectors", {"vectors": np.full((1, 4), np.inf), "layers": np.array([0])}, "not finite"),
        ("vectors", {"vectors": np.full((1, 4), 1e30), "layers": np.array([0])}, "above"),
        ("vectors", {"vectors": np.zeros((1, 4)), "layers": np.array([0])}, "is zero"),
        ("vectors", {"vectors": np.ones((2, 4)), "layers": np.array([1, 1])}, "twice"),
        ("vectors", {"vectors": np.ones((2, 4)), "layers": np.array([1])}, "shape"),
        ("heads", {"heads": np.array([[1, 2], [1, 2]])}, "twice"),
        ("heads", {"heads": np.array([[1, -2]])}, "negative"),
        ("heads", {"heads": np.zeros((0, 2))}, "shape"),
        (
            "head_vectors",
            {"heads": np.array([[0, 0]]), "vectors": np.ones((1, 8)), "sigma": -np.ones(1)},
            "negative",
        ),
        ("nonsense", {}, "unknown kind"),
        ("sinks", {"heads": np.array([[1, 2]])}, "unknown tensor"),
    ],
)
def test_bad_contents(kind, tensors, message):
    with pytest.raises(ArtifactError, match=message):
        write_artifact(kind, MODEL, tensors)


@pytest.mark.parametrize(
    ("kind", "facts", "message"),
    [
        ("subspaces", {"layers": 5}, "no residual 6; the model has 6"),
        ("subspaces", {"hidden_size": 65}, "hidden_size 64; the model has 65"),
        ("low_rank", {"hidden_size": 65}, "read has hidden_size 64"),
        ("diagonal", {"layers": 5}, "no residual 6"),
        ("vectors", {"fingerprint": ""}, "another model .* float16 may have another fingerprint"),
        ("vectors", {"fingerprint": "sha256:" + "b" * 64}, "another model"),
        ("vectors", {"hidden_size": 65}, "hidden_size 64; the model has 65"),
        ("vectors", {"layers": 5}, "no residual 6; the model has 6"),
        ("head_vectors", {"layers": 5}, "no layer 5; the model has 5"),
        ("head_vectors", {"heads": 3}, "no query head 3"),
        ("head_vectors", {"head_dim": 16}, "head_dim 8; the model has 16"),
        ("head_means", {"layers": 7}, "layers 6; the model has 7"),
        ("head_means", {"heads": 8}, "heads 4; the model has 8"),
        ("sinks", {"hidden_size": 63}, "no residual dimension 63"),
    ],
)
def test_another_model(kind, facts, message):
    artifact = read_artifact(write_artifact(kind, MODEL, GOOD[kind]))
    check_for(artifact, FACTS)
    with pytest.raises(ArtifactError, match=message):
        check_for(artifact, replace(FACTS, **facts))


def test_the_context_finds_artifacts():
    artifact = read_artifact(write_artifact("heads", MODEL, GOOD["heads"]))
    stored = {artifact.digest: artifact}
    context = Context(FACTS, Prompt(3), stored.get)
    assert context.artifact(artifact.digest, "heads") is artifact

    def refused(context: Context, digest: str, kind: str) -> InterventionError:
        with pytest.raises(InterventionError) as caught:
            context.artifact(digest, kind, "vectors")
        assert caught.value.param == "vectors"
        return caught.value

    missing = refused(context, "sha256:" + "0" * 64, "heads")
    assert (missing.code, missing.status) == (Code.ARTIFACT_NOT_FOUND, 404)
    missing = refused(Context(FACTS, Prompt(3)), artifact.digest, "heads")
    assert missing.within("interventions[0]").status == 404
    other = refused(context, artifact.digest, "sinks")
    assert (other.code, other.status) == (Code.ARTIFACT_MISMATCH, 400)
    other = refused(replace(context, model=replace(FACTS, heads=2)), artifact.digest, "heads")
    assert other.code is Code.ARTIFACT_MISMATCH
