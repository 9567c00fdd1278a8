"""The table of launch configurations has what may be asked for, and keeps its promises."""

import itertools

import pytest
import torch

from saccade_kernels.batch import PAGE
from saccade_kernels.gpu.tuning import SHARED, decode_config, prefill_config, small_config, table

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [8, 16, 32, 64, 80, 96, 128, 256])
def test_every_shape_has_an_entry(dim, dtype):
    for rows in (16, 32, 64, 128):
        config = decode_config(dim, rows, dtype)
        assert config.split % PAGE == 0
        assert PAGE % config.block_keys == 0
        assert config.max_splits & (config.max_splits - 1) == 0
        assert config.block_rows >= 16
    for edited in (False, True):
        assert prefill_config(dim, edited, dtype).block_m >= 16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["norm", "rope", "gate"])
def test_small_kernels_have_an_entry(kernel, dtype):
    config = small_config(kernel, dtype)
    assert (config.block == 0) == (kernel == "norm")
    assert config.block & (config.block - 1) == 0
    warps = [config.warps(1 << size) for size in range(5, 17)]
    assert warps == sorted(warps)
    assert warps[0] == 1
    assert warps[-1] == config.most_warps


def test_a_shape_without_an_entry_is_named():
    with pytest.raises(ValueError, match=r"no decode configuration for .*'rows': 256"):
        decode_config(128, 256, torch.bfloat16)


@pytest.mark.parametrize("kernel", SHARED)
def test_plain_and_edited_forms_add_in_the_same_order(kernel):
    for one, other in itertools.combinations(table()[kernel], 2):
        same = all(one["key"][name] == other["key"][name] for name in ("head_dim", "bytes"))
        for field in SHARED[kernel] if same else ():
            assert one["config"][field] == other["config"][field], (one["key"], other["key"])


def test_an_entry_says_whether_it_was_measured():
    entries = [entry for kernel in (*SHARED, "small") for entry in table()[kernel]]
    assert {type(entry["measured"]) for entry in entries} == {bool}
    assert any(e["measured"] for e in entries) == (table()["hardware"] is not None)
