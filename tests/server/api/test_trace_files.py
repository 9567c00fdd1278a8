"""Arrays as JSON, and as files behind links."""

import asyncio
import base64
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from saccade_server.api.traces import numbers
from saccade_server.api.traces.files import trace_file
from saccade_server.api.traces.numbers import as_base64, as_lists
from saccade_server.api.traces.store import TraceStore
from saccade_server.requests.traces.arrays import ArraySpec, Axis, TraceArray

SHAPES = [(), (0,), (3,), (2, 0), (0, 2), (2, 3), (5, 1, 2), (40,), (3, 40), (2, 3, 17)]


def lists(values):
    return json.loads(b"".join(as_lists(values)))


def traced(values, name="a"):
    axes = tuple(Axis(f"axis {at}", size) for at, size in enumerate(values.shape))
    return TraceArray(ArraySpec(name, (name,), axes, "nats", values.dtype.name), values)


def made(seed=0, size=20):
    random = np.random.default_rng(seed)
    return trace_file({"seed": seed}, {"a": traced(random.normal(size=size).astype(np.float32))})


@pytest.mark.parametrize("piece", [1, 7, 2**14])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lists_are_the_numbers_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch, shape, piece):
    monkeypatch.setattr(numbers, "PIECE", piece)
    random = np.random.default_rng(len(shape))
    for values in (
        random.normal(size=shape).astype(np.float32),
        random.integers(-9, 9, shape, np.int32),
        random.integers(0, 9, shape, np.uint8),
    ):
        found = np.asarray(lists(values), values.dtype).reshape(shape)
        assert np.array_equal(found, values)
        assert np.shape(lists(values)) == shape or values.size == 0


@given(st.lists(st.floats(width=32), max_size=30))
def test_nine_digits_are_every_float32(given_values):
    values = np.asarray(given_values, np.float32)
    found = np.asarray(lists(values), np.float64).astype(np.float32)
    finite = np.isfinite(values)
    assert np.array_equal(found[finite], values[finite])
    assert np.isnan(found[~finite]).all()


def test_numbers_are_written_short():
    text = b"".join(as_lists(np.asarray([0.1, 1 / 3, 12345.678, 1e-5], np.float32)))
    assert text == b"[0.100000001,0.333333343,12345.6777,9.99999975e-6]"


@pytest.mark.parametrize("piece", [3, 2**10])
def test_texts_are_the_bytes(monkeypatch: pytest.MonkeyPatch, piece):
    monkeypatch.setattr(numbers, "PIECE_BYTES", piece)
    for shape in SHAPES:
        values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        data = base64.b64decode(json.loads(b"".join(as_base64(values))))
        assert data == values.astype("<f4").tobytes()


def test_a_file_is_read_by_safetensors():
    arrays = {
        "marks": traced(np.arange(5, dtype=np.uint8)),
        "x": traced(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "é": traced(np.zeros((0, 3), np.int32)),
        "one": traced(np.asarray(7, np.int32)),
    }
    file = trace_file({"a": "é"}, arrays)
    data = b"".join(file.pieces)
    found = load(data)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert np.array_equal(found[name], array.values)
        assert found[name].dtype == array.values.dtype
    assert len(data) == file.bytes
    header = int.from_bytes(data[:8], "little")
    assert header % 8 == 0
    told = json.loads(data[8 : 8 + header])["__metadata__"]
    assert json.loads(told["trace"]) == {"a": "é"}
    again = trace_file({"a": "é"}, dict(reversed(arrays.items())))
    assert again.digest == file.digest


def has(store, digest):
    file = store.open(digest)
    if file is not None:
        file.close()
    return file is not None


@pytest.fixture
def size():
    return made().bytes


def test_the_oldest_leave_for_new_ones(tmp_path: Path, size):
    store = TraceStore(tmp_path, 3 * size)
    files = [made(seed) for seed in range(5)]
    for file in files[:3]:
        store.put(file)
        time.sleep(0.01)
    store.put(files[0])  # is new again
    time.sleep(0.01)
    (tmp_path / "other.txt").write_bytes(b"x" * 10 * size)
    store.put(files[3])
    there = [has(store, file.digest) for file in files]
    assert there == [True, False, True, True, False]
    assert (tmp_path / "other.txt").exists()


def test_what_is_too_large_is_not_kept(tmp_path: Path, size):
    store = TraceStore(tmp_path, size)
    store.put(made())
    with pytest.raises(OSError, match="larger"):
        store.put(made(size=200))
    assert has(store, made().digest)


def test_unfinished_files_of_others_count_and_stay(tmp_path: Path, size):
    store = TraceStore(tmp_path, 2 * size)
    (tmp_path / ".upload-x").write_bytes(b"x" * size)
    store.put(made(1))
    time.sleep(0.01)
    store.put(made(2))
    assert not has(store, made(1).digest)
    assert has(store, made(2).digest)
    assert (tmp_path / ".upload-x").exists()


def test_several_servers_and_threads_put_at_once(tmp_path: Path, size):
    stores = [TraceStore(tmp_path, 4 * size) for _ in range(2)]
    faults = []

    def put(store, first):
        try:
            for seed in range(first, first + 20):
                store.put(made(seed % 7))
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=put, args=(stores[n % 2], n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    kept = list(tmp_path.iterdir())
    assert 1 <= len(kept) <= 6  # each server may have put one that the other had not seen
    assert all(path.suffix == ".safetensors" for path in kept)


def test_a_folder_that_is_taken_away_is_made_again(tmp_path: Path):
    folder = tmp_path / "traces"
    store = TraceStore(folder, 10**6)
    folder.rmdir()
    assert not has(store, "0" * 64)
    store.put(made())
    assert has(store, made().digest)


def test_a_private_folder_goes_with_the_store():
    store = TraceStore(None, 10**6)
    store.put(made())
    folder = store._files.folder
    assert len(list(folder.glob("*.safetensors"))) == 1
    store.close()
    assert not folder.exists()


def test_writing_much_leaves_the_event_loop_its_turn():
    values = np.random.default_rng(0).random((4, 500_000), np.float32)

    async def watch(write) -> float:
        worst = 0.0
        work = asyncio.get_running_loop().run_in_executor(None, write)
        before = time.thread_time()
        while not work.done():
            start = time.perf_counter()
            await asyncio.sleep(0)
            worst = max(worst, time.perf_counter() - start)
        await work
        assert time.thread_time() >= before
        return worst

    whole = time.perf_counter()
    asyncio.run(watch(lambda: b"".join(as_lists(values))))
    whole = time.perf_counter() - whole
    for write in (
        lambda: b"".join(as_lists(values)),
        lambda: b"".join(as_base64(values)),
        lambda: trace_file({}, {"a": traced(values)}),
    ):
        # A single call for all of it would hold the loop nearly as long as it takes.
        assert asyncio.run(watch(write)) < max(whole / 4, 0.1)
