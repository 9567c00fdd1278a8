"""What the chip can do: copy and read bandwidth, bf16 matrix rate."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gpu.backend import uses_triton
from gpu.read_kernel import BLOCK, TILES, WARPS, read_kernel
from gpu.session import Figures, Session
from gpu.shapes import Ceilings
from gpu.timing import Timing, measure


def measure_ceilings(session: Session, found: Figures) -> None:
    """The part named "ceilings"; everything else is compared with it."""
    if "matmul" in found:
        return
    count = BLOCK * TILES * (1 if session.dry else 1 << 14)  # int32: 4 GiB
    source = torch.randint(-9, 9, (count,), dtype=torch.int32, device=session.device)
    found["copy"] = _copy(session, source)
    found["read"] = _read(session, source)
    products: Figures = {}
    size = 64 if session.dry else 8192
    _matmul(session, products, size, size, size)
    for rows in (4096, 128, 32, 8, 1):
        _matmul(session, products, min(rows, size), min(4096, size), min(11008, size))
    found["matmul"] = products
    ceilings = Ceilings.of(found)
    rates = f"copy {ceilings.copy / 1e12:.2f}, read {ceilings.read / 1e12:.2f}"
    session.line("the card", f"{rates} TB/s, bf16 {ceilings.flops / 1e12:.0f} TFLOP/s")


def _copy(session: Session, source: torch.Tensor) -> Figures:
    target = torch.empty_like(source)
    taken = measure([lambda: target.copy_(source)], session.device)
    return _bandwidth(taken, 2 * source.nbytes)


def _read(session: Session, source: torch.Tensor) -> Figures:
    if not uses_triton(session.device):
        return _bandwidth(measure([lambda: source.sum()], session.device), source.nbytes)
    grid = (source.numel() // (BLOCK * TILES),)
    sums = torch.empty(grid, dtype=torch.int32, device=session.device)

    def run() -> None:
        read_kernel[grid](source, sums, BLOCK=BLOCK, TILES=TILES, num_warps=WARPS)

    taken = measure([run], session.device)
    assert int(sums.sum(dtype=torch.int64)) == int(source.sum(dtype=torch.int64))
    return _bandwidth(taken, source.nbytes)


def _matmul(session: Session, found: Figures, rows: int, inner: int, columns: int) -> None:
    """A product with weights that are not in the cache."""
    device, dtype = session.device, torch.bfloat16
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    weights = [torch.randn(columns, inner, device=device, dtype=dtype) for _ in range(3)]
    calls: list[Callable[[], object]] = [lambda w=w: left @ w.T for w in weights]
    taken = measure(calls, device)
    rate = 2.0 * rows * inner * columns / taken.seconds
    found[f"{rows}x{inner}x{columns}"] = {
        **taken.as_json(),
        "tflop_s": rate / 1e12,
        "weights_tb_s": weights[0].nbytes / taken.seconds / 1e12,
    }


def _bandwidth(taken: Timing, moved: int) -> Figures:
    return {**taken.as_json(), "bytes": moved, "tb_s": moved / taken.seconds / 1e12}


def known_ceilings(session: Session) -> Ceilings:
    """Those of this card, measured now if no part before this one has."""
    found = session.known.setdefault("ceilings", {})
    if "matmul" not in found:
        found.clear()
        measure_ceilings(session, found)
    return Ceilings.of(found)
