"""Products of rows with weights, and those that give a row the same bits in any company.

A matrix library picks the order of a row's sum by how many rows there are, so a row's last bits
depend on its neighbours. Found by experiment with torch 2.13 on a CPU with AVX-512, in 2,000 rows
and a dozen shapes from 3 x 7 to 4096 x 4096, entries of all sizes:

float32 (MKL)      products of 1, 2 and 3 rows, and on two threads of 5 to 7 and 9 to 11, differ
                   from all others; those of every multiple of 4 rows agree, on 1 to 3 threads
float32, 4 and 8   of one odd shape (97 x 33) a row's bits also depend on its place; of all others
threads            as above
bfloat16 (oneDNN)  one row alone differs, in few entries of large products; all others agree
transposed         weights times rows: worse, in every shape

So rows are padded with zeros to a multiple of four and multiplied at once, some at a time. That
costs what the plain product costs from four rows on, and 2.5 times as much for one row in float32,
where the library has something faster for vectors (benchmarks/products.py). Whether a row keeps its
bits is tried once for every shape of weights in this process, since another library or machine may
do otherwise; where it does not, rows are multiplied one by one, which holds whatever the library
does.
"""

from __future__ import annotations

import torch
from torch.nn import functional

MULTIPLE = 4
"""Rows of an invariant product are a multiple of this."""
AT_ONCE = 128
"""Rows of one call; no call has more than those that were tried."""
TRIED = (4, 12, 60, AT_ONCE)


def linear(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    invariant: bool = False,
) -> torch.Tensor:
    """The product of each row with the rows of ``weight``.

    Args:
        hidden: [rows, in].
        weight: [out, in], in the same dtype.
        bias: [out], added before the result is rounded.
        out: [rows, out], where the result is written if it is given.
        invariant: a row's result has the same bits whatever the other rows are and however many,
            in this process.

    Returns:
        [rows, out], in the same dtype.
    """
    if invariant:
        found = _invariant(hidden.contiguous(), weight, bias)
        return found if out is None else out.copy_(found)
    return multiply(hidden, weight, bias, out)


def multiply(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The library's product, in the order that it likes."""
    if out is None:
        return functional.linear(hidden, weight, bias)
    if bias is None:
        return torch.mm(hidden, weight.T, out=out)
    return torch.addmm(bias, hidden, weight.T, out=out)


def _invariant(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    rows = hidden.shape[0]
    if rows == 0:
        return multiply(hidden, weight, bias)
    if not keeps_bits(weight, bias):
        # In memory of its own: libraries heed where a row begins.
        return torch.cat([multiply(row.clone(), weight, bias) for row in torch.split(hidden, 1)])
    short = -rows % MULTIPLE
    padded = functional.pad(hidden, (0, 0, 0, short)) if short else hidden
    found = padded.new_empty((padded.shape[0], weight.shape[0]))
    for start in range(0, padded.shape[0], AT_ONCE):
        some = slice(start, start + AT_ONCE)
        multiply(padded[some], weight, bias, found[some])
    return found[:rows]


_known: dict[tuple[object, ...], bool] = {}


def keeps_bits(weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """True if padded rows keep their bits with this weight, by trying it; remembered by shape."""
    place = (weight.device, torch.get_num_threads(), bias is None)
    key = (weight.shape, weight.dtype, *place)
    if key not in _known:
        _known[key] = _try(weight, bias)
    return _known[key]


def _try(weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Rows in products of several sizes, and all of them in other places."""
    rows, inner = max(TRIED), weight.shape[1]
    source = torch.Generator().manual_seed(0)
    sizes = (torch.randn(rows, inner, generator=source) for _ in range(2))
    values = next(sizes) * next(sizes).exp()
    hidden = values.to(weight.device, weight.dtype)
    room = hidden.new_empty((rows, weight.shape[0]))
    wanted = multiply(hidden, weight, bias)
    for count in TRIED:
        if not torch.equal(multiply(hidden[-count:], weight, bias, room[-count:]), wanted[-count:]):
            return False
    order = torch.randperm(rows, generator=source).to(weight.device)
    return torch.equal(multiply(hidden[order], weight, bias), wanted[order])
