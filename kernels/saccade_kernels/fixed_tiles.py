"""Attention's products in tiles of one shape, so that a row's bits depend on that row alone.

A library chooses how to sum by the shapes that it is given: rows of a product get other bits
beside other numbers of rows or keys. Here every product is one of :data:`ROWS` rows with one page
of keys, whatever is asked for, and pages are added in ascending order:

    scores    query tile [ROWS, D] . page of keys [D, PAGE]          one tile a page
    values    sum over pages p of weights [ROWS, PAGE]_p . [PAGE, N]_p

A key that a row does not see has a weight of zero, so pages behind the row's own add exact zeros:
how many keys the longest sequence of a step has does not matter either. Missing rows of a tile
are zeros. What a machine's library does with a tile's rows is checked at start (invariance.py).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from saccade_kernels.batch import PAGE

ROWS = 8
"""Rows of a tile: the query heads of one key head that most models have, or more."""

MOST_COPIED = 1 << 20
"""Numbers that a page of keys may become when it is copied for all tiles."""


def bmm_keys(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Products with keys, as ``torch.bmm``.

    Args:
        rows: [B, M, D].
        columns: [B, D, keys], keys a multiple of :data:`PAGE`.

    Returns:
        [B, M, keys].
    """
    batch, count, dim = rows.shape
    # One layout of a page for both loops below: a library has another kernel for each.
    keys = columns.transpose(1, 2).contiguous().view(batch, -1, PAGE, dim)
    tiles, pages = _tiles(rows), keys.shape[1]
    found = rows.new_empty(batch, tiles.shape[1], ROWS, pages, PAGE)
    if _by_pages(tiles, keys):
        each = tiles.reshape(-1, ROWS, dim)
        for page in range(pages):
            product = torch.bmm(each, _spread(keys, page, tiles).transpose(1, 2))
            found[:, :, :, page] = product.view(batch, -1, ROWS, PAGE)
    else:
        every = keys.view(-1, PAGE, dim).transpose(1, 2)
        for tile in range(tiles.shape[1]):
            product = torch.bmm(_spread(tiles, tile, keys), every)
            found[:, tile] = product.view(batch, pages, ROWS, PAGE).transpose(1, 2)
    return found.view(batch, -1, pages * PAGE)[:, :count].contiguous()


def bmm_values(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Weighted sums over keys, as ``torch.bmm``.

    Args:
        weights: [B, M, keys], keys a multiple of :data:`PAGE`.
        values: [B, keys, N].

    Returns:
        [B, M, N].
    """
    batch, count, _ = weights.shape
    paged = values.contiguous().view(batch, -1, PAGE, values.shape[2])
    pages, width = paged.shape[1], paged.shape[3]
    tiles = _tiles(weights).view(batch, -1, ROWS, pages, PAGE)
    found = weights.new_empty(batch, tiles.shape[1], ROWS, width)
    if _by_pages(tiles, paged):
        for page in range(pages):
            each = tiles[:, :, :, page].reshape(-1, ROWS, PAGE)
            part = torch.bmm(each, _spread(paged, page, tiles)).view(found.shape)
            found = found.copy_(part) if page == 0 else found.add_(part)
    else:
        every = paged.view(-1, PAGE, width)
        for tile in range(tiles.shape[1]):
            each = tiles[:, tile].transpose(1, 2).reshape(-1, ROWS, PAGE)
            parts = torch.bmm(each, every).view(batch, pages, ROWS, width)
            total = found[:, tile].copy_(parts[:, 0])
            for page in range(1, pages):
                total.add_(parts[:, page])
    return found.view(batch, -1, width)[:, :count].contiguous()


def _tiles(rows: torch.Tensor) -> torch.Tensor:
    """[B, M, K] as [B, tiles, ROWS, K], with rows of zeros behind the last."""
    missing = -rows.shape[1] % ROWS
    padded = functional.pad(rows, (0, 0, 0, missing)) if missing else rows
    return padded.reshape(rows.shape[0], -1, ROWS, rows.shape[2])


def _by_pages(tiles: torch.Tensor, pages: torch.Tensor) -> bool:
    """True to go through the pages, each copied for every tile; else through the tiles.

    Both are the same products. Fewer calls are better, as long as what is copied is small.
    """
    copied = tiles.shape[1] * pages[:, 0].numel()
    return pages.shape[1] < tiles.shape[1] and copied <= MOST_COPIED


def _spread(some: torch.Tensor, at: int, others: torch.Tensor) -> torch.Tensor:
    """One of [B, n, ...] for each of ``others``, [B, m, ...]: [B * m, ...]."""
    one = some[:, at, None]
    return one.expand(-1, others.shape[1], *one.shape[2:]).flatten(0, 1).contiguous()
