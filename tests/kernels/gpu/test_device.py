"""Facts of GPUs: what fits a multiprocessor, and which GPU is refused."""

from types import SimpleNamespace

import pytest
import torch

from saccade_kernels.gpu import device
from saccade_kernels.gpu.device import KIB, KNOWN, UnsupportedDeviceError, running


@pytest.mark.parametrize(
    ("capability", "registers", "shared_memory", "warps", "blocks"),
    [
        (90, 128, 71680, 4, 3),  # shared memory decides
        (90, 128, 0, 4, 4),  # registers do
        (90, 168, 0, 4, 3),
        (90, 255, 0, 8, 1),
        (90, 180, 131072, 8, 1),
        (90, 32, 1024, 1, 32),  # so many blocks at most
        (90, 32, 1024, 4, 16),  # or so many warps
        (80, 96, 71680, 4, 2),
        (86, 96, 71680, 4, 1),
        (86, 16, 0, 1, 16),
        (89, 16, 0, 1, 24),
        (86, 16, 0, 8, 6),
        (86, 96, 99 * KIB, 4, 1),
        (86, 96, 99 * KIB + 16, 4, 0),  # does not fit
    ],
)
def test_blocks_of_a_multiprocessor(capability, registers, shared_memory, warps, blocks):
    assert KNOWN[capability].resident_blocks(registers, shared_memory, warps) == blocks


def test_a_round_has_a_slot_for_each_block_that_fits():
    assert KNOWN[90].slots(3) == 396
    assert KNOWN[90].slots(0) == 132


def test_without_a_gpu_an_h200_is_assumed_or_what_is_named():
    assert running() == KNOWN[90]
    with device.on(86):
        assert running() == KNOWN[86]
    assert running() == KNOWN[90]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch):
    """Makes a GPU with a name, a capability and some multiprocessors."""

    def make(name: str, major: int, minor: int, multiprocessors: int) -> None:
        found = SimpleNamespace(
            name=name, major=major, minor=minor, multi_processor_count=multiprocessors
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
        device.present.cache_clear()

    yield make
    device.present.cache_clear()


def test_multiprocessors_are_the_cards_own(card):
    card("NVIDIA L4", 8, 9, 58)
    assert running().multiprocessors == 58
    assert running().block_shared_memory == 99 * KIB


def test_a_gpu_that_nothing_is_compiled_for_is_named(card):
    card("Tesla T4", 7, 5, 40)
    with pytest.raises(UnsupportedDeviceError) as refused:
        running()
    assert str(refused.value) == (
        "GPU 0 (Tesla T4) has compute capability 7.5, which no kernel is compiled for; "
        "supported are 8.0, 8.6, 8.9, 9.0, 10.0 and 12.0"
    )
