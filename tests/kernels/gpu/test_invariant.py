"""Attention of invariant batches in Triton, run by the interpreter: right, and row by row."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from saccade_kernels import reference
from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, Edit
from saccade_kernels.gpu.invariant import invariant_attention, single_rows
from saccade_kernels.gpu.tuning import PrefillConfig

CONFIG = PrefillConfig(block_m=16, num_warps=4, num_stages=2)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is NaN, so that a row the kernel does not write shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self: torch.Tensor, *size: Any, **options: Any) -> torch.Tensor:
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.fixture
def stored(make_case: Callable[..., Any]) -> Callable[..., Any]:
    """A case whose keys all lie in the cache, with heads of one key head."""

    def make(**options: Any) -> Any:
        case = make_case(**{"heads": 2, "kv_heads": 1, "dtype": torch.float32, **options})
        caches = (case.key_cache, case.value_cache)
        reference.store(case.new(case.keys), case.new(case.values), *caches, case.batch.slots)
        case.batch = replace(case.batch, invariant=True)
        return case

    return make


def run(case: Any, batch: AttentionBatch | None = None, **more: Any) -> torch.Tensor:
    batch = replace(batch or case.batch, derived={})
    query = more.pop("query", case.query)
    arguments = (query, case.key_cache, case.value_cache, batch, 1, query.shape[-1] ** -0.5)
    return invariant_attention(*arguments, config=CONFIG, **more)


def alone(case: Any, rows: slice, with_edits: Callable[..., Any]) -> tuple[Any, AttentionBatch]:
    """Rows of the case's only sequence as decodes of their own, and their queries."""
    batch, count = case.batch, rows.stop - rows.start
    behind = int(batch.context_lens[0]) - len(case.query) + 1
    contexts = torch.arange(rows.start, rows.stop, dtype=torch.int32) + behind
    part = replace(
        batch,
        slots=batch.slots[rows],
        query_starts=torch.arange(count + 1, dtype=torch.int32),
        context_lens=contexts,
        page_table=batch.page_table.expand(count, -1).contiguous(),
        control_rows=batch.control_rows[rows],
        tag_rows=batch.tag_rows.expand(count).contiguous(),
        num_decodes=count,
    )
    return case.query[rows], with_edits(part, batch.prefills[0].runs[0].edits)


@pytest.mark.parametrize("hide", [False, True], ids=["seen", "hide"])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "window": 40}], ids=["", "window"])
def test_it_is_the_formula(
    stored: Callable[..., Any],
    oracle: Callable[..., torch.Tensor],
    hide: bool,
    options: dict[str, float],
) -> None:
    case = stored(queries=(1, 1, 5, 3), contexts=(65, 7, 64, 130), hide=hide)
    found = run(case, **options)
    wanted = oracle(case, **options)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "window": 40}], ids=["", "window"])
@pytest.mark.parametrize("edited", [True, False], ids=["edited", "plain"])
def test_a_decode_has_the_bits_of_its_row_in_a_prompt(
    stored: Callable[..., Any],
    per_head: Callable[..., Any],
    with_edits: Callable[..., Any],
    dtype: torch.dtype,
    options: dict[str, float],
    edited: bool,
) -> None:
    case = stored(queries=(37,), contexts=(150,), dtype=dtype, hide=edited)
    case.batch.control_rows[:] = torch.arange(37) // 10 % 4
    case.batch = with_edits(case.batch, case.batch.prefills[0].runs[0].edits)
    if edited:
        case = per_head(case, (0,))
    else:
        case.batch = replace(case.plain(), invariant=True)
    whole = run(case, **options)
    exact = (t.double() for t in (case.query, case.key_cache, case.value_cache))
    batch = replace(case.batch, derived={})
    wanted = reference.invariant_attention(*exact, batch, 1, 0.25, **options)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(whole.double(), wanted, rtol=tolerance, atol=tolerance)
    for rows in (slice(0, 3), slice(9, 11), slice(36, 37)):
        query, part = alone(case, rows, with_edits)
        part = part if edited else replace(part, edits=(), controls=None, tags=None, prefills=())
        assert torch.equal(run(case, part, query=query, **options), whole[rows])


def test_padding_sees_no_key(stored: Callable[..., Any]) -> None:
    case = stored(queries=(1, 1), contexts=(9, 0))
    case.batch.control_rows[1] = 0
    found = run(case)
    assert torch.equal(found[1], torch.zeros_like(found[1]))
    assert single_rows(case.batch)[1].tolist()[:4] == [1, 1, 1, -1]


def test_masses_are_emitted(stored: Callable[..., Any]) -> None:
    case = stored(queries=(1, 5), contexts=(65, 70))
    found = []
    for attend in (run, expected):
        sites = case.query.shape[:2]
        emit = Emission(torch.full((*sites, CLASSES), torch.nan), torch.full(sites, torch.nan))
        attend(case, emit=emit)
        found.append(emit)
    torch.testing.assert_close(found[0].masses, found[1].masses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0].lse, found[1].lse, rtol=1e-5, atol=1e-5)


def expected(case: Any, emit: Emission) -> torch.Tensor:
    batch = replace(case.batch, derived={})
    arguments = (case.query, case.key_cache, case.value_cache, batch, 1, 0.25)
    return reference.invariant_attention(*arguments, emit=emit)


def test_rows_whose_masses_move_are_counted(
    stored: Callable[..., Any], with_edits: Callable[..., Any]
) -> None:
    case = stored(queries=(5,), contexts=(70,))
    counts = []
    for part in (None, slice(0, 5)):
        query, batch = (case.query, case.batch) if part is None else alone(case, part, with_edits)
        tags = batch.tags
        assert tags is not None
        tags.moved.zero_()
        run(case, batch, query=query)
        counts.append(tags.moved.clone())
    assert torch.equal(*counts)
    assert counts[0].sum() > 0


def test_hidden_keys_are_found_on_the_device(stored: Callable[..., Any]) -> None:
    case = stored(queries=(1, 1), contexts=(70, 70), hide=True)
    tags = case.batch.tags
    assert bool((tags.tags == NEVER_ATTEND).any())
    tags.hides[1] = 0
    assert single_rows(case.batch)[:, 5].tolist() == [0, 1]
    assert Edit.HIDE & case.batch.edit(1)
