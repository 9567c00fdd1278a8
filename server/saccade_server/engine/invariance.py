"""``--batch-invariant``: what a machine must keep for it.

The arithmetic lies elsewhere: products in tiles of one shape (``ops.linear``, fixed_tiles.py),
activations and image features by themselves, one row at a time where rules judge candidates. What
a library does with tiles of one shape is its own affair, so it is tried out here.
"""

from __future__ import annotations

import torch

from saccade_kernels.batch import PAGE
from saccade_kernels.fixed_tiles import ROWS, bmm_keys, bmm_values
from saccade_server.models.base import ServedModel
from saccade_server.models.folder import UnsupportedModelError

ALIGNED = 4
"""Numbers of 32 bits that a GPU reads at once: PyTorch's softmax begins where that is possible."""


def check_machine(model: ServedModel) -> None:
    """Compute tiles of attention as the CPU's are, among others and alone, and compare.

    Products with weights are tried where they are made, and have another form (products.py).

    Raises:
        UnsupportedModelError: what a tile gives depends on how many there are, or, on a GPU, what
            a row of logits gives on where it lies.
    """
    if model.device.type == "cuda" and model.vocab_size % ALIGNED:
        raise UnsupportedModelError(
            f"--batch-invariant cannot be kept with a vocabulary of {model.vocab_size} tokens on a "
            f"GPU: rows that do not begin at a multiple of {ALIGNED} numbers are summed from "
            "elsewhere; serve it on a CPU"
        )
    if model.device.type == "cpu" and not _tiles_are_kept(model):
        raise UnsupportedModelError(
            "--batch-invariant cannot be kept on this machine: its library sums a row of "
            f"attention (heads of {model.head_dim}) in another order beside other rows"
        )


def _tiles_are_kept(model: ServedModel) -> bool:
    """Tiles of attention among as many as long contexts have, and alone."""
    work = torch.promote_types(model.dtype, torch.float32)
    many = 33 * PAGE
    rows = _noise(3 * ROWS, model.head_dim)[None].to(work)
    keys = _noise(many, model.head_dim).T[None].to(work)
    scores = bmm_keys(rows, keys)
    alone = bmm_keys(rows[:, -1:], keys[..., :PAGE].contiguous())
    values = keys.transpose(1, 2).contiguous()
    one = scores[:, -1:].clone()
    one[..., PAGE:] = 0
    every = torch.cat([scores[:, :-1], one], 1)
    return torch.equal(scores[:, -1:, :PAGE], alone) and torch.equal(
        bmm_values(every, values)[:, -1:], bmm_values(one[..., :PAGE], values[:, :PAGE])
    )


def _noise(rows: int, size: int) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(0))
