"""What files of other programs hold, against the libraries that wrote them."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import save

from saccade_server.importing import Found, ImportRefused, read_vectors
from saccade_testing.foreign_vectors import gguf_bytes, torch_bytes, vectors

HIDDEN = 48
MANY = vectors((1, 2, 10), HIDDEN)
ONE = MANY[1]


def same(found: Found, wanted: dict[int, Any]) -> None:
    assert list(found.directions) == list(wanted)
    for layer, vector in wanted.items():
        assert np.array_equal(found.directions[layer].reshape(-1), np.asarray(vector)), layer


def test_repengs_gguf_is_what_its_own_reader_finds(tmp_path: Path) -> None:
    data = gguf_bytes(tmp_path, MANY)
    found = read_vectors(data)
    reader = gguf.GGUFReader(tmp_path / "vector.gguf")
    same(found, {int(t.name.split(".")[1]): t.data for t in reader.tensors})
    same(found, MANY)
    assert (found.origin, found.model_type) == ("GGUF control vector", "llama")


@pytest.mark.parametrize("component", [None, "hidden_states"])
def test_easysteers_gguf(tmp_path: Path, component: str | None) -> None:
    native = json.dumps({"version": 1, "component": component, "metadata": None})
    found = read_vectors(gguf_bytes(tmp_path, MANY, method="diffmean", easysteer=native))
    same(found, MANY)
    assert found.origin == 'GGUF control vector ("diffmean")'


@pytest.mark.parametrize("component", ["attention_heads", "router_logits", 3, ["hidden_states"]])
def test_easysteers_vectors_of_other_places_are_refused(tmp_path: Path, component: Any) -> None:
    native = json.dumps({"version": 1, "component": component, "metadata": {}})
    with pytest.raises(ImportRefused, match="only those of hidden_states"):
        read_vectors(gguf_bytes(tmp_path, MANY, easysteer=native))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_of_gguf_tensors(tmp_path: Path, dtype: Any) -> None:
    same(read_vectors(gguf_bytes(tmp_path, {3: ONE.astype(dtype)})), {3: ONE.astype(dtype)})


def test_a_quantised_gguf_is_refused(tmp_path: Path) -> None:
    whole = {3: np.arange(32, dtype=np.int8)}
    with pytest.raises(ImportRefused, match="quantised"):
        read_vectors(gguf_bytes(tmp_path, whole))


def test_a_model_is_no_control_vector(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match='its architecture is "llama"'):
        read_vectors(gguf_bytes(tmp_path, MANY, architecture="llama"))


TENSOR = torch.from_numpy(ONE)
BASE = torch.randn(4, 2 * HIDDEN, dtype=torch.float32)


@pytest.mark.parametrize(
    "value",
    [
        TENSOR,
        TENSOR.double(),
        TENSOR.half(),
        TENSOR.bfloat16(),
        TENSOR[None],
        torch.nn.Parameter(TENSOR),
        BASE[1, ::2],
        BASE.T[3:51, 2],
        ONE,
        ONE.astype(np.float64),
        ONE.astype(np.float16)[None],
        np.asfortranarray(np.stack([ONE, ONE]))[:1],
    ],
    ids=lambda value: f"{type(value).__name__} {value.dtype} {tuple(value.shape)}",
)
def test_a_tensor_or_array_of_one_vector_belongs_to_every_layer_named(value: Any) -> None:
    data = torch_bytes(value)
    loaded = torch.load(io.BytesIO(data), weights_only=False)
    wanted = torch.as_tensor(loaded).detach().double().numpy().reshape(-1)
    same(read_vectors(data, [5, 7]), {5: wanted, 7: wanted})
    with pytest.raises(ImportRefused, match="name them"):
        read_vectors(data)


def test_rows_belong_to_the_layers_in_order() -> None:
    stacked = torch.from_numpy(np.stack(list(MANY.values())))
    for value in (stacked, stacked.numpy(), np.asfortranarray(stacked.numpy())):
        same(read_vectors(torch_bytes(value), [1, 2, 10]), MANY)
    with pytest.raises(ImportRefused, match="3 rows; 2 layers"):
        read_vectors(torch_bytes(stacked), [1, 2])


@pytest.mark.parametrize("name", ["{}", "direction.{}", "layer_{}", "layers.{}", None])
def test_a_dict_names_its_layers(name: str | None) -> None:
    def key(layer: int) -> Any:
        return layer if name is None else name.format(layer)

    tensors = {key(layer): torch.from_numpy(vector) for layer, vector in MANY.items()}
    same(read_vectors(torch_bytes(tensors)), MANY)
    arrays = {key(layer): vector for layer, vector in MANY.items()}
    same(read_vectors(torch_bytes(arrays)), MANY)
    same(read_vectors(torch_bytes(tensors), [2]), {2: MANY[2]})
    if name is not None:
        same(read_vectors(save(arrays)), MANY)


def test_layers_that_are_not_there(tmp_path: Path) -> None:
    data = gguf_bytes(tmp_path, MANY)
    same(read_vectors(data, [1, 10]), {1: MANY[1], 10: MANY[10]})
    with pytest.raises(ImportRefused, match="no vector of layer 3; it has 1, 2, 10"):
        read_vectors(data, [1, 3])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"weight": TENSOR}, "not the number of a layer"),
        ({1: TENSOR, "1": TENSOR}, "layer 1 twice"),
        ({1: [TENSOR]}, "no layer's vector"),
        ({}, "no vectors"),
        ("text", "no tensor"),
        ([TENSOR], "no tensor"),
        ({1: torch.arange(4)}, "LongStorage"),
        ({1: np.arange(4)}, 'type "i8"'),
        ({1: torch.empty(0)}, "empty"),
        (torch.ones(3).to_sparse(), "no tensor"),
    ],
)
def test_what_holds_no_vectors(value: Any, said: str) -> None:
    with pytest.raises(ImportRefused, match=said):
        read_vectors(torch_bytes(value))


class Runs:
    """What a pickle of this would do to whoever unpickles it."""

    def __reduce__(self) -> Any:
        return (open, ("/tmp/saccade-was-run", "w"))


@pytest.mark.parametrize("value", [Runs(), {1: Runs()}, {1: TENSOR, 2: Runs()}, [Runs()]])
def test_nothing_is_run_nor_looked_up(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch_bytes(value)
    monkeypatch.setattr("builtins.open", None)
    for name in ("loads", "load", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    with pytest.raises(ImportRefused, match=r"io\.open"):
        read_vectors(data)


def pickled(*opcodes: bytes) -> bytes:
    """An archive with such a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"".join(opcodes))
        archive.writestr("a/data/0", bytes(4 * HIDDEN))
    return file.getvalue()


@pytest.mark.parametrize(
    "opcodes",
    [
        (b"cos\nsystem\n", b"U\x02ls", b"\x85R."),
        (b"ctorch\nload\n", b"."),
        (b"ctorch\nFloatStorage\n", b")R."),  # a storage is a name, and never called
        (b"cnumpy\nndarray\n", b")R."),
        (b"ibuiltins\neval\n.",),
        (b"(dbuiltins.eval.",),
        (b"\x8c\x02os\x8c\x06system\x93.",),
        (b"}", b"(K\x01K\x02K\x03u."),
        (b"}", b"]K\x01s."),
        (b".",),
        (b"h\x00.",),
        (b"K",),
        (b"]q\x00h\x00a.",),  # a list in itself
        (b"I" + b"9" * 10_000 + b"\n.",),
        (b"c" + b"\xff" * 10 + b"\n\n.",),
        (b"(" * 100_000 + b".",),
        (b"]" * 250_000 + b".",),
    ],
)
def test_pickles_of_nothing_that_a_tensor_needs(opcodes: tuple[bytes, ...]) -> None:
    with pytest.raises(ImportRefused):
        read_vectors(pickled(*opcodes))


def test_tuples_in_tuples_are_not_followed() -> None:
    """Each holds the one before twice: their text, and their hash, would take for ever."""
    grown = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (at, at, at + 1) for at in range(60))
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4K\x00K\x01\x87R"
    for opcodes in (
        (grown, b"\x8c\x01x\x93."),
        (grown, b"\x8c\x01x", b"h\x3c\x93."),
        (grown, dtype, b"(K\x03h\x3cNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."),
    ):
        with pytest.raises(ImportRefused, match="cannot be followed"):
            read_vectors(pickled(*opcodes))


def test_numbers_are_not_taken_twice_out_of_a_file() -> None:
    """Views repeat, texts are encoded again, tensors overlap: none makes more than a file holds."""
    wide = torch.ones(1).expand(2**24)
    with pytest.raises(ImportRefused, match="more than the file holds"):
        read_vectors(torch_bytes({1: wide, 2: wide.view(1, -1)}))
    text = b"X" + struct.pack("<I", 2**20) + b"x" * 2**20 + b"q\x01"
    again = b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R"
    with pytest.raises(ImportRefused, match="more of the file"):
        read_vectors(pickled(text, again * 70, b"."))


def header(tensors: int = 0, fields: int = 0, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, fields)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


VECTOR = text("general.architecture") + struct.pack("<I", 8) + text("controlvector")
ENDLESS = text("a") + struct.pack("<IIQ", 9, 4, 2**60)
"""An array of as many numbers: the reader of the package gguf goes on and on."""


def direction(name: str, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


OVERLAPPING = b"".join(direction(f"direction.{layer}", 32) for layer in range(9))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"GGUF" + b"\xff" * 20,
        header(2**40),
        header(fields=2**40),
        header(version=1),
        header(version=3 << 24),  # big-endian
        header(fields=1) + ENDLESS,
        header(fields=1) + text("a") + struct.pack("<IIQ", 9, 8, 2**60),
        header(fields=1) + text("a") + struct.pack("<IIQ", 9, 9, 1),
        header(fields=1) + text("a") + struct.pack("<I", 77),
        header(fields=1) + struct.pack("<Q", 2**63) + b"a",
        header(fields=2) + VECTOR + VECTOR,
        header(1, 1) + VECTOR + direction("direction.1", 2**62, 4),
        header(1, 1) + VECTOR + direction("direction.1", 4, offset=2**63) + bytes(64),
        header(1, 1) + VECTOR + direction("direction.1", *[1] * 9) + bytes(64),
        header(1, 1) + VECTOR + direction("direction.1", 0, 2**63) + bytes(64),
        header(1, 1) + VECTOR + direction("direction.-1", 4) + bytes(64),
        header(1, 1) + VECTOR + direction("direction.01", 4) + bytes(64),
        header(1, 1) + VECTOR + direction("token_embd", 4) + bytes(64),
        header(2, 1) + VECTOR + direction("direction.1", 4) * 2 + bytes(64),
        header(9, 1) + VECTOR + OVERLAPPING + bytes(160),
    ],
    ids=lambda data: f"{len(data)} bytes",
)  # fmt: skip
def test_broken_gguf_ends(data: bytes) -> None:
    with pytest.raises(ImportRefused):
        read_vectors(data)


def whole_files(folder: Path) -> dict[str, bytes]:
    named = {f"direction.{layer}": vector for layer, vector in MANY.items()}
    return {
        "gguf": gguf_bytes(folder, MANY),
        "tensors": torch_bytes({k: torch.from_numpy(v) for k, v in MANY.items()}),
        "arrays": torch_bytes(MANY),
        "safetensors": save(named),
    }


@pytest.mark.parametrize("kind", ["gguf", "tensors", "arrays", "safetensors"])
def test_mutations_and_truncations_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    data = whole_files(tmp_path)[kind]
    rng = np.random.default_rng(5)
    for _ in range(400):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            broken[at] = rng.integers(0, 256)
        cut = bytes(broken)[: rng.integers(0, len(data))] if rng.random() < 0.3 else bytes(broken)
        try:
            found = read_vectors(cut, None if rng.random() < 0.8 else [1])
        except ImportRefused:
            continue
        assert all(vector.size for vector in found.directions.values())


def test_other_files(tmp_path: Path) -> None:
    for data, said in (
        (pickle.dumps(MANY), "bare pickle"),
        (b"\x89PNG\r\n", "neither GGUF nor safetensors"),
        (bytes(100), "neither GGUF nor safetensors"),
        (bytes(2**26 + 1), "at most"),
    ):
        with pytest.raises(ImportRefused, match=said):
            read_vectors(data)
    file = io.BytesIO()
    torch.save(TENSOR, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ImportRefused, match="bare pickle"):
        read_vectors(file.getvalue())


def test_archives_that_torch_does_not_write() -> None:
    good = zipfile.ZipFile(io.BytesIO(torch_bytes(TENSOR)))

    def rewritten(compression: int = zipfile.ZIP_STORED, **changed: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            for entry in good.infolist():
                name = entry.filename.partition("/")[2]
                if (content := changed.get(name, good.read(entry))) != b"-":
                    archive.writestr(f"x/{name}", content)
        return file.getvalue()

    same(read_vectors(rewritten(), [1]), {1: ONE})
    for data, said in (
        (rewritten(zipfile.ZIP_DEFLATED), "compressed"),
        (rewritten(**{"data.pkl": b"-"}), "lacks data.pkl"),
        (rewritten(**{"data/0": b"-"}), "lacks the numbers"),
        (rewritten(**{"data/0": bytes(8)}), "disagree"),
        (rewritten(byteorder=b"big"), "big-endian"),
    ):
        with pytest.raises(ImportRefused, match=said):
            read_vectors(data, [1])
