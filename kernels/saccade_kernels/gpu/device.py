"""What GPUs have room for: the one that runs, and those that kernels are compiled for without one.

All but the number of multiprocessors follows from the compute capability; the figures are those of
the CUDA C++ Programming Guide, "Compute Capabilities". A capability that is not listed here has no
compiled form that was ever looked at, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch

KIB = 1024

RESERVED = 1 * KIB
"""Shared memory that the driver keeps of each block, beside what the block asked for."""

REGISTER_UNIT = 256
"""Registers are given to a warp in such pieces."""

SCHEDULERS = 4
"""Of a multiprocessor: each has a quarter of the registers, so warps come in fours."""


class UnsupportedDeviceError(ValueError):
    """No kernel is compiled for this GPU; the message is one sentence for who started a server."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU. Sizes of memory are bytes; what has no other owner is of a multiprocessor."""

    capability: int  # 10 * major + minor
    multiprocessors: int
    block_shared_memory: int  # most that one block may ask for
    shared_memory: int
    warps: int  # most at a time
    blocks: int  # most at a time
    registers: int = 65536

    @property
    def has_group_products(self) -> bool:
        """Whether several warps multiply one tile together, which leaves them more registers."""
        return self.capability in (90, 100)

    @property
    def has_little_shared_memory(self) -> bool:
        """Whether a block may have less than tiles of 128 dimensions in three stages take."""
        return self.block_shared_memory < 128 * KIB

    def resident_blocks(self, registers: int, shared_memory: int, warps: int) -> int:
        """Blocks of one form that a multiprocessor runs at a time; 0: the form does not fit.

        Args:
            registers: of a thread.
            shared_memory: of a block, bytes.
            warps: of a block.
        """
        if shared_memory > self.block_shared_memory:
            return 0
        of_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
        fitting_warps = self.registers // of_warp // SCHEDULERS * SCHEDULERS
        return min(
            fitting_warps // warps,
            self.shared_memory // (shared_memory + RESERVED),
            self.warps // warps,
            self.blocks,
        )

    def slots(self, resident_blocks: int) -> int:
        """Blocks that the whole GPU runs at a time: one round of a launch."""
        return self.multiprocessors * max(1, resident_blocks)


KNOWN = {
    device.capability: device
    for device in (
        Device(80, 108, 163 * KIB, 164 * KIB, warps=64, blocks=32),  # A100, A30
        Device(86, 84, 99 * KIB, 100 * KIB, warps=48, blocks=16),  # A40, A10, RTX 30
        Device(89, 142, 99 * KIB, 100 * KIB, warps=48, blocks=24),  # L40S, L4, RTX 40
        Device(90, 132, 227 * KIB, 228 * KIB, warps=64, blocks=32),  # H100, H200
        Device(100, 148, 227 * KIB, 228 * KIB, warps=64, blocks=32),  # B200
        Device(120, 188, 99 * KIB, 100 * KIB, warps=48, blocks=24),  # RTX PRO 6000, RTX 50
    )
}
"""By capability, with the multiprocessors of the largest card."""

ASSUMED = 90
"""Capability where no GPU is: kernels that run in the interpreter are launched as on an H200."""


def running() -> Device:
    """The current GPU, or the one that :func:`on` names, or without either the assumed one.

    Raises:
        UnsupportedDeviceError: its capability is not known.
    """
    if _named:
        return KNOWN[_named[-1]]
    if not torch.cuda.is_available():
        return KNOWN[ASSUMED]
    return present(torch.cuda.current_device())


@contextmanager
def on(capability: int) -> Iterator[None]:
    """Another device's facts, for what is compiled or told without it."""
    _named.append(capability)
    try:
        yield
    finally:
        _named.pop()


_named: list[int] = []


@cache
def present(index: int) -> Device:
    """One of this machine's GPUs.

    Raises:
        UnsupportedDeviceError: its capability is not known.
    """
    found = torch.cuda.get_device_properties(index)
    capability = 10 * found.major + found.minor
    if capability not in KNOWN:
        raise UnsupportedDeviceError(
            f"GPU {index} ({found.name}) has compute capability {found.major}.{found.minor}, "
            f"which no kernel is compiled for; supported are {supported()}"
        )
    return replace(KNOWN[capability], multiprocessors=found.multi_processor_count)


def supported() -> str:
    """The capabilities in words: "8.0, 8.6 and 9.0"."""
    *most, last = (f"{capability // 10}.{capability % 10}" for capability in sorted(KNOWN))
    return f"{', '.join(most)} and {last}"
