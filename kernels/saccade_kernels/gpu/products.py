"""Triton products of rows with weights whose sums have one order, however many rows there are.

One launch, one program for each tile of the result; a tile walks all of ``in``, nothing is split:

                    weight [out, in], COLUMNS rows of it
                    +-------+-------+-- ...  INNER values a step, ``num_stages`` steps under way
                    +-------+-------+--
    hidden          | . . . | . . . |
    [rows, in]      +-------+-------+--        result [ROWS, COLUMNS], float32, in registers
    +-------+---    one step adds ROWS x COLUMNS x INNER products, in the order of ``in``
    | ROWS  |
    +-------+---    rows that are not there are zeros, which no memory is read for

Bytes of a launch: every weight once for each ROWS rows, hidden once for each COLUMNS of ``out``,
the latter from L2. Products: padded rows x out x in. Up to 64 rows in bf16 that is less time on an
H200 than the weights' bytes take, and so the tile of an invariant product has 64 rows even for one.

A row's sum is that of its own tile row: the same instructions in the same order whatever the other
rows are and wherever it lies, for tiles of one shape. So the invariant product has one shape of
tile for all numbers of rows (it follows from ``out`` and the dtype), and the product for 1 to 16
rows another, which serves where tuning.json has an entry for it: where a chip measured it to be
faster than the library's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import products
from saccade_kernels.gpu.rounding import narrow
from saccade_kernels.gpu.tiles import dot, needs_upcast
from saccade_kernels.gpu.tuning import WIDE, ProductConfig, invariant_config, product_config

FEW = 16
"""Rows up to which a product may be the one that tuning.json has."""


def first_config(columns: int, dtype: torch.dtype) -> ProductConfig:
    """Where a search for a product of few rows begins, as its compiled code has it.

    With 16 columns the weights of 4096 rows make 256 programs, two for each multiprocessor of an
    H200, which have 62 KiB of weights under way there; with 32, three hold 140 KiB.
    """
    inner = 512 // dtype.itemsize
    if columns >= WIDE:
        return ProductConfig(FEW, 32, inner, num_warps=4, num_stages=4)
    return ProductConfig(FEW, 16, inner, num_warps=4, num_stages=5)


@triton.jit(do_not_specialize=["rows"])
def product_kernel(
    hidden,
    weight,
    bias,
    output,
    rows,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    BIASED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """output [rows, OUT] = hidden [rows, IN] times weight [OUT, IN] transposed, plus bias [OUT].

    Grid (tiles of rows, tiles of OUT): neighbours share weights, which are read from memory once.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, INNER)
    is_row, is_column = row < rows, column < OUT
    hidden_at = hidden + row.to(tl.int64)[:, None] * IN + inner[None, :]
    weight_at = weight + column.to(tl.int64)[None, :] * IN + inner[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, IN, INNER):
        if IN % INNER == 0:
            a = tl.load(hidden_at + start, mask=is_row[:, None], other=0.0)
        else:
            is_inner = inner < IN - start
            a = tl.load(hidden_at + start, mask=is_row[:, None] & is_inner[None, :], other=0.0)
        if IN % INNER == 0 and OUT % COLUMNS == 0:
            w = tl.load(weight_at + start)
        elif IN % INNER == 0:
            w = tl.load(weight_at + start, mask=is_column[None, :], other=0.0)
        else:
            inside = is_column[None, :] & (inner < IN - start)[:, None]
            w = tl.load(weight_at + start, mask=inside, other=0.0)
        total += dot(a, w, UPCAST)
    if BIASED:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    output_at = output + row.to(tl.int64)[:, None] * OUT + column[None, :]
    found = narrow(total, output.dtype.element_ty, UPCAST)
    tl.store(output_at, found, mask=is_row[:, None] & is_column[None, :])


def linear(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    invariant: bool = False,
) -> torch.Tensor:
    """:func:`saccade_kernels.products.linear`: in Triton if it is invariant or few rows have an
    entry of tuning.json, else by the library. Float64 is multiplied in PyTorch.
    """
    assert hidden.dim() == 2
    config = _config(hidden.shape[0], weight, invariant)
    if config is None:
        return products.linear(hidden, weight, bias, out, invariant)
    return product(hidden, weight, bias, out, config)


def _config(rows: int, weight: torch.Tensor, invariant: bool) -> ProductConfig | None:
    columns, inner = weight.shape
    if rows == 0 or weight.dtype == torch.float64:
        return None
    if invariant:
        return invariant_config(columns, weight.dtype)
    return product_config(columns, inner, rows, weight.dtype) if rows <= FEW else None


def product(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor | None,
    config: ProductConfig,
) -> torch.Tensor:
    """The kernel's, for any number of rows, launched as ``config`` says."""
    x, (columns, inner) = hidden.contiguous(), weight.shape
    assert weight.is_contiguous(), "weights lie row behind row"
    assert x.dtype == weight.dtype, "rows and weights are of one type"
    result = x.new_empty((x.shape[0], columns)) if out is None else out
    assert result.is_contiguous(), "rows lie one behind another"
    grid = (triton.cdiv(x.shape[0], config.rows), triton.cdiv(columns, config.columns))
    product_kernel[grid](
        x,
        weight,
        bias,
        result,
        x.shape[0],
        IN=inner,
        OUT=columns,
        ROWS=config.rows,
        COLUMNS=config.columns,
        INNER=config.inner,
        BIASED=bias is not None,
        UPCAST=needs_upcast(x.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return result
