"""Attention of a batch that is invariant: a row has the same bits in every batch and chunk."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from saccade_kernels import fixed_tiles, layers, ops, reference
from saccade_kernels.batch import PAGE, AttentionBatch, Emission
from saccade_kernels.controls import CLASSES
from saccade_kernels.fixed_tiles import ROWS, bmm_keys, bmm_values

CASES: dict[str, dict[str, Any]] = {
    "grouped": {"queries": (70,), "contexts": (150,), "hide": True},
    "one head each": {"queries": (150,), "contexts": (150,), "heads": 3, "kv_heads": 3, "dim": 24},
    "all heads of one": {"queries": (20,), "contexts": (64,), "heads": 9, "kv_heads": 1},
    "eight classes": {"queries": (33,), "contexts": (129,), "classes": CLASSES, "heads": 8},
}
CHUNKS = (1, 7, 64)


def cut(batch: AttentionBatch, bounds: list[int]) -> AttentionBatch:
    """The rows of the only sequence of a batch in chunks of their own: one of a row is a decode.

    Args:
        bounds: first rows of the chunks, and the number of rows; single rows first.
    """
    context, rows = int(batch.context_lens[0]), len(batch.slots)
    parts = list(pairwise(bounds))
    return replace(
        batch,
        query_starts=torch.tensor(bounds, dtype=torch.int32),
        context_lens=torch.tensor([context - rows + last for _, last in parts], dtype=torch.int32),
        page_table=batch.page_table.expand(len(parts), -1).contiguous(),
        tag_rows=batch.tag_rows.expand(len(parts)).contiguous(),
        num_decodes=sum(1 for first, last in parts if last - first == 1),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "window": 40}], ids=["", "window"])
def test_rows_are_the_same_in_every_chunk(
    make_case: Callable[..., Any],
    per_head: Callable[..., Any],
    with_edits: Callable[..., AttentionBatch],
    kind: str,
    dtype: torch.dtype,
    options: dict[str, float],
) -> None:
    case = make_case(dtype=dtype, **CASES[kind])
    if kind == "grouped":
        case = per_head(case, (0,))
    whole = replace(case.batch, invariant=True)
    edits, rows = whole.prefills[0].runs[0].edits, len(case.query)
    wanted = case.run(batch=whole, **options)
    for chunk in CHUNKS:
        for first in (0, 1, rows // 2):
            bounds = [*range(first, rows, chunk), rows]
            if bounds[-1] - bounds[-2] == 1 and chunk > 1:  # single rows come first in a batch
                bounds = bounds[:-1]
            case.query, query = case.query[first : bounds[-1]], case.query
            part = replace(
                whole,
                slots=whole.slots[: bounds[-1]],
                control_rows=whole.control_rows[: bounds[-1]],
                context_lens=whole.context_lens - (rows - bounds[-1]),
            )
            part = cut(part, bounds)
            part = replace(
                part,
                query_starts=part.query_starts - first,
                slots=part.slots[first:],
                control_rows=part.control_rows[first:],
            )
            part = with_edits(part, edits)
            caches = (case.key_cache.clone(), case.value_cache.clone())
            new = [h[0][len(h[0]) - rows :] for h in (case.keys, case.values)]
            reference.store(*new, *caches, whole.slots)
            scale = case.query.shape[-1] ** -0.5
            found = ops.attention(case.query, *caches, part, 1, scale, **options)
            case.query = query
            assert torch.equal(found, wanted[first : bounds[-1]]), f"chunks of {chunk} from {first}"


def test_decodes_are_the_same_among_longer_ones(
    make_case: Callable[..., Any], with_edits: Callable[..., AttentionBatch]
) -> None:
    case = make_case(
        queries=(1,) * 5, contexts=(3, 65, 300, 64, 0), dtype=torch.float32, classes=CLASSES
    )
    batch = replace(case.batch, invariant=True)
    together = case.run(batch=batch)
    caches = (case.key_cache.clone(), case.value_cache.clone())
    reference.store(case.new(case.keys), case.new(case.values), *caches, batch.slots)
    for row in range(4):
        here = slice(row, row + 1)
        alone = replace(
            batch,
            slots=batch.slots[here],
            query_starts=batch.query_starts[:2],
            context_lens=batch.context_lens[here],
            page_table=batch.page_table[here],
            control_rows=batch.control_rows[here],
            tag_rows=batch.tag_rows[here],
            num_decodes=1,
        )
        alone = with_edits(alone, batch.edits)
        found = ops.attention(case.query[here], *caches, alone, 1, 16**-0.5)
        assert torch.equal(found, together[here])
    assert bool(torch.isfinite(together).all()), "a padded row looks at nothing"


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "window": 40}], ids=["", "window"])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_attention(
    make_case: Callable[..., Any],
    oracle: Callable[..., torch.Tensor],
    seed: int,
    options: dict[str, float],
) -> None:
    case = make_case(queries=(1, 1, 5, 20), contexts=(65, 7, 64, 140), hide=True, seed=seed)
    batch = replace(case.batch, invariant=True)
    found = case.run(batch=batch, **options)
    torch.testing.assert_close(found, oracle(case, **options), rtol=1e-9, atol=1e-9)
    usual = case.run(**options)
    torch.testing.assert_close(found, usual, rtol=1e-9, atol=1e-9)


def test_plain_rows_keep_their_bits_beside_edited_ones(make_case: Callable[..., Any]) -> None:
    case = make_case(queries=(1, 1, 30), contexts=(65, 7, 100), dtype=torch.float32)
    case.batch.control_rows[:] = torch.arange(len(case.query)) % 2
    edited = case.run(batch=replace(case.batch, invariant=True))
    plain = case.run(batch=replace(case.plain(), invariant=True))
    assert torch.equal(edited[::2], plain[::2])
    assert not torch.equal(edited[1::2], plain[1::2])


def test_masses_are_emitted(make_case: Callable[..., Any]) -> None:
    case = make_case(queries=(1, 30), contexts=(65, 100), dtype=torch.float32)
    sites = case.query.shape[:2]
    found = []
    for invariant in (True, False):
        emit = Emission(torch.full((*sites, CLASSES), torch.nan), torch.full(sites, torch.nan))
        case.run(batch=replace(case.batch, invariant=invariant), emit=emit)
        found.append(emit)
    torch.testing.assert_close(found[0].masses, found[1].masses)
    torch.testing.assert_close(found[0].lse, found[1].lse)


def test_head_weights_are_what_they_were(make_case: Callable[..., Any]) -> None:
    case = make_case(queries=(1, 1, 9), contexts=(65, 7, 100))
    caches = (case.key_cache.clone(), case.value_cache.clone())
    reference.store(case.new(case.keys), case.new(case.values), *caches, case.batch.slots)
    found = [
        reference.head_weights(case.query, *caches, batch, 1, 0.25)
        for batch in (replace(case.batch, invariant=True, derived={}), case.batch)
    ]
    assert found[0].shape == found[1].shape
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_both_ways_through_the_tiles_are_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)

    def draw(*size: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=size)).to(dtype)

    for rows, pages, dim in ((41, 2, 24), (1, 3, 64), (200, 1, 80), (17, 3, 128)):
        query, keys = draw(3, rows, dim), draw(3, pages * PAGE, dim)
        weights, found = draw(3, rows, pages * PAGE), []
        for most in (0, 1 << 40):
            monkeypatch.setattr(fixed_tiles, "MOST_COPIED", most)
            found.append((bmm_keys(query, keys.transpose(1, 2)), bmm_values(weights, keys)))
        for here, there, wanted in zip(
            *found, (query @ keys.transpose(1, 2), weights @ keys), strict=True
        ):
            assert torch.equal(here, there)
            torch.testing.assert_close(here, wanted, rtol=1e-4, atol=1e-4)


def test_pages_are_added_in_order() -> None:
    """Sums that cancel show another order: 1 is lost beside 1e8, and not behind it."""
    weights = torch.zeros(1, 1, 3 * PAGE)
    weights[0, 0, [5, PAGE + 5, 2 * PAGE + 5]] = torch.tensor([1e8, -1e8, 1.0])
    values = torch.ones(1, 3 * PAGE, 16)
    assert torch.equal(bmm_values(weights, values), torch.ones(1, 1, 16))
    assert torch.equal(bmm_values(weights.flip(2), values), torch.zeros(1, 1, 16))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [24, 1000, 40000])
@pytest.mark.parametrize("name", sorted(layers.ACTIVATIONS))
def test_gates_do_not_depend_on_the_number_of_rows(size: int, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    merged = torch.randn(35, 2 * size, generator=torch.Generator().manual_seed(1))
    wanted = ops.gate(merged, name, invariant=True)
    for first, last in ((0, 1), (34, 35), (3, 10), (1, 34)):
        found = ops.gate(merged[first:last].clone(), name, invariant=True)
        assert torch.equal(found, wanted[first:last])
    torch.testing.assert_close(wanted, ops.gate(merged, name))


def test_the_order_matters_where_batches_are_not_invariant() -> None:
    """What the tiles are for: the library's own products give a row other bits among others."""
    query, keys = torch.randn(1, 40, 128), torch.randn(1, 128, 40 * PAGE)
    alone = torch.bmm(query[:, :1], keys)
    assert not torch.equal(torch.bmm(query, keys)[:, :1], alone)
    assert torch.equal(bmm_keys(query, keys)[:, :1], bmm_keys(query[:, :1], keys))
    assert ROWS < 40
