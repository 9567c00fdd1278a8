"""The table of launch configurations has what may be asked for, and keeps its promises."""

import itertools

import pytest
import torch

from saccade_kernels.batch import PAGE
from saccade_kernels.gpu import device, tuning, variants
from saccade_kernels.gpu.tuning import (
    KERNELS,
    PREFILL_FORMS,
    SHARED,
    chips,
    decode_config,
    prefill_config,
    small_config,
    table,
)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [8, 16, 32, 64, 80, 96, 128, 256])
def test_every_shape_has_an_entry(dim, dtype):
    for group, edited in itertools.product((1, 7), (False, True)):
        config = decode_config(dim, group, edited, dtype)
        assert config.split % PAGE == 0
        assert PAGE % config.block_keys == 0
        assert config.blocks >= 1
    for form in PREFILL_FORMS:
        assert prefill_config(dim, form, dtype).block_m >= 16


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
    with pytest.raises(ValueError, match=r"no decode configuration for .*'bytes': 8"):
        decode_config(128, 1, False, torch.float64)


@pytest.mark.parametrize("capability", device.KNOWN)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_that_have_a_kernel_are_known(dtype, capability):
    with tuning.on(tuning.named(capability)):
        for dim in (16, 64, 72, 80, 96, 128, 192, 256):
            tuning.check_heads(dim, dtype)
        with pytest.raises(device.UnsupportedDeviceError, match=r"heads of 320 .* up to 256"):
            tuning.check_heads(320, dtype)


@pytest.mark.parametrize("chip", chips())
@pytest.mark.parametrize("kernel", SHARED)
def test_plain_and_edited_forms_add_in_the_same_order(kernel, chip):
    asked = [table().get(name, {}) for name in tuning.order(chip)]
    keys = [entry["key"] for one in asked for entry in one.get(kernel, ())]
    with tuning.on(chip):
        found = [(key, tuning._find(kernel, key)) for key in keys]
    for (one, first), (other, second) in itertools.combinations(found, 2):
        same = all(one[name] == other[name] for name in ("head_dim", "grouped", "bytes"))
        for field in SHARED[kernel] if same else ():
            assert first[field] == second[field], (one, other)


@pytest.mark.parametrize("chip", chips())
def test_an_entry_says_whether_it_was_measured(chip):
    entries = [entry for kernel in KERNELS for entry in table()[chip].get(kernel, ())]
    assert {type(entry["measured"]) for entry in entries} <= {bool}
    assert any(e["measured"] for e in entries) == (table()[chip]["hardware"] is not None)


@pytest.mark.parametrize(
    ("card", "chip"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("", "default"),
    ],
)
def test_a_chip_is_known_by_its_cards_name(card, chip):
    assert tuning.family(card) == chip


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch):
    """A table of an H200 with one entry, unlike the default's."""
    key = {"head_dim": 128, "grouped": False, "edited": False, "bytes": 2}
    config = {**tuning._find("decode", key), "num_warps": 8}
    one = {"key": key, "config": config, "measured": True}
    own = {"hardware": "nvidia-h200", "versions": {}, "otherwise": "sm_90", "decode": [one]}
    with_own = {**table(), "h200": own}
    monkeypatch.setattr(tuning, "table", lambda: with_own)
    tuning._entry.cache_clear()
    yield config
    tuning._entry.cache_clear()


def test_a_chip_has_its_own_entries_and_those_of_others_for_the_rest(h200):
    assert tuning.chip() == "sm_90"
    assert decode_config(128, 1, False, torch.bfloat16).num_warps == 4
    with tuning.on("h200"):
        assert decode_config(128, 1, False, torch.bfloat16).num_warps == 8
        assert decode_config(128, 1, True, torch.bfloat16).num_warps == 4
        assert decode_config(256, 1, False, torch.bfloat16).num_warps == 4
    with tuning.on("h100"):
        assert decode_config(128, 1, False, torch.bfloat16).num_warps == 4
    assert tuning.chip() == "sm_90"


def test_a_capability_asks_the_tables_of_its_elders():
    assert tuning.order("sm_90") == ("sm_90", "default")
    assert tuning.order("sm_89") == ("sm_89", "sm_86", "sm_80", "default")
    assert tuning.order("sm_120") == ("sm_120", "sm_86", "sm_80", "default")
    assert tuning.order("default") == ("default",)


@pytest.mark.parametrize("capability", device.KNOWN)
def test_facts_go_with_the_table(capability):
    with tuning.on(tuning.named(capability)):
        assert device.running() == device.KNOWN[capability]
        assert prefill_config(128, "per_head", torch.bfloat16).block_m >= 16


@pytest.mark.parametrize(
    ("card", "capability", "chip"),
    [
        ("NVIDIA H200", 90, "h200"),  # has a table
        ("NVIDIA H100 PCIe", 90, "sm_90"),
        ("NVIDIA A10", 86, "sm_86"),
        ("NVIDIA L40S", 89, "sm_89"),
    ],
)
def test_the_gpu_that_runs_chooses(card, capability, chip, h200, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
    monkeypatch.setattr(device, "running", lambda: device.KNOWN[capability])
    tuning._present.cache_clear()
    assert tuning.chip() == chip
    monkeypatch.undo()
    tuning._present.cache_clear()


def test_forms_of_every_chip_are_compiled_ahead(h200):
    own = [form for form in variants.shipped() if form.name.endswith("-h200")]
    assert own
    assert {form.num_warps for form in own if form.name.startswith("decode")} == {8}
    padded = {form.name.split("-")[1] for form in own}
    assert padded == {"d80", "d96", "d128"}
