"""Packing small arrays into one block, and getting them out again."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saccade_server.engine.transfer import ALIGNMENT, Download, Layout, Uploader

DTYPES = (np.uint8, np.int32, np.int64, np.float32, np.float64)
CPU = torch.device("cpu")

shapes = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)


@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1, max_size=8))
def test_arrays_survive_the_block(kinds: list[tuple[tuple[int, ...], type]]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 100, shape).astype(dtype) for shape, dtype in kinds]
    tensors = Uploader(CPU, packed=True)(*arrays)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_fields_are_aligned_and_do_not_overlap() -> None:
    layout = Layout([((3,), np.uint8), ((2, 5), np.int64), ((0,), np.int32), ((1,), np.float64)])
    assert all(field.start % ALIGNMENT == 0 for field in layout.fields)
    ends = [field.end for field in layout.fields]
    starts = [field.start for field in layout.fields]
    assert all(end <= start for end, start in zip(ends[:-1], starts[1:], strict=True))
    assert layout.size >= ends[-1]


def test_host_and_device_views_of_a_block_agree() -> None:
    layout = Layout([((2, 3), np.int64), ((4,), np.int32)])
    block = torch.zeros(layout.size, dtype=torch.uint8)
    wide, narrow = layout.arrays(block.numpy())
    wide[1, 2], narrow[3] = 2**40, -7
    tensors = layout.tensors(block)
    assert int(tensors[0][1, 2]) == 2**40
    assert tensors[1].tolist() == [0, 0, 0, -7]


def test_on_the_cpu_nothing_is_copied() -> None:
    array = np.arange(4)
    (tensor,) = Uploader(CPU)(array)
    array[0] = 9
    assert int(tensor[0]) == 9
    (found,) = Download([tensor]).wait()
    assert found is tensor


@pytest.mark.gpu
def test_there_and_back_on_a_gpu() -> None:
    device = torch.device("cuda")
    arrays = [np.arange(5), np.full((2, 2), 0.5), np.zeros((0, 3), np.int32)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        download = Download(Uploader(device)(*arrays))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for array, tensor in zip(arrays, download.wait(), strict=True):
        assert tensor.is_pinned() or not tensor.numel()
        np.testing.assert_array_equal(tensor.numpy(), array)
