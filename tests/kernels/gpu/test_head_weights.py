"""The weights that heads use: the reference against the contract, the kernels against it."""

from dataclasses import replace

import pytest
import torch

from saccade_kernels import ops, reference
from saccade_kernels.controls import Edit
from saccade_kernels.gpu import head_weights as kernel

QUERIES, CONTEXTS = (1, 1, 1, 5, 3), (70, 7, 0, 66, 9)  # 0: padding
SHAPES = {
    "grouped heads": {},
    "a window": {"window": 40},
    "a soft-cap": {"softcap": 3.0},
    "hidden keys": {"hide": True},
    "every head its own keys": {"heads": 4, "kv_heads": 4},
    "eight classes": {"classes": 8},
    "decodes alone": {"queries": (1, 1), "contexts": (300, 5)},
    "a prompt alone": {"queries": (70,), "contexts": (75,)},
}


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that what a kernel fails to write shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def prepared(make_case, queries=QUERIES, contexts=CONTEXTS, softcap=0.0, window=0, **sizes):
    """A case with its keys stored, and scale, soft-cap and window."""
    case = make_case(queries, contexts, **sizes)
    new = case.new(case.keys), case.new(case.values)
    reference.store(*new, case.key_cache, case.value_cache, case.batch.slots)
    return case, (case.query.shape[2] ** -0.5, softcap, window)


def run(op, case, scores, dtype=torch.float64, layer=1):
    arrays = (case.query.to(dtype), case.key_cache.to(dtype), case.value_cache.to(dtype))
    return op(*arrays, replace(case.batch, derived={}), layer, *scores)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_the_contract(make_case, oracle_weights, shape):
    case, scores = prepared(make_case, **SHAPES[shape])
    wanted = oracle_weights(case, 1, *scores)
    torch.testing.assert_close(run(ops.head_weights, case, scores), wanted, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize(
    "shape",
    [*list(SHAPES)[:-1], pytest.param(list(SHAPES)[-1], marks=pytest.mark.long)],
)
def test_kernels_are_the_reference(make_case, shape):
    dtype = torch.bfloat16 if shape == "grouped heads" else torch.float32
    case, scores = prepared(make_case, **SHAPES[shape])
    for name in ("query", "key_cache", "value_cache"):
        setattr(case, name, getattr(case, name).to(dtype).double())
    wanted = run(reference.head_weights, case, scores).float()
    found = run(kernel.head_weights, case, scores, dtype)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("op", [reference.head_weights, kernel.head_weights])
def test_single_heads_have_classes_of_their_own(make_case, per_head, op):
    """Their masses move by these; a sequence without such is computed as if it were alone."""
    case, scores = prepared(make_case, queries=(1, 4, 4), contexts=(70, 5, 9), classes=4)
    dtype = torch.float64 if op is reference.head_weights else torch.float32
    before = run(op, case, scores, dtype)
    own = run(op, per_head(case, (0, 2)), scores, dtype)
    torch.testing.assert_close(own[1:5], before[1:5], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(own[5:], before[5:], atol=1e-3)
    wanted = run(reference.head_weights, case, scores).to(dtype)
    torch.testing.assert_close(own, wanted, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("op", [reference.head_weights, kernel.head_weights])
def test_nothing_counts_as_moved_and_tables_need_not_edit(make_case, with_edits, op):
    case, scores = prepared(make_case)
    dtype = torch.float64 if op is reference.head_weights else torch.float32
    run(op, case, scores, dtype)
    assert not case.tables[1].moved.any()
    identity = torch.zeros_like(case.batch.control_rows)
    case.batch = with_edits(replace(case.batch, control_rows=identity), ())
    plain = run(op, case, scores, dtype)
    case.batch = with_edits(case.batch, (Edit.NONE,) * 2)
    torch.testing.assert_close(run(op, case, scores, dtype), plain, atol=1e-6, rtol=1e-5)
    sums = plain.sum(-1)
    torch.testing.assert_close(sums[3:], torch.ones_like(sums[3:]), atol=1e-5, rtol=0)
    assert not plain[2].any()  # padding


def test_it_gives_what_attention_computes(make_case):
    """The same weights times values are the heads' outputs, before their gains."""
    case, scores = prepared(make_case, queries=(1, 9), contexts=(70, 65))
    controls = case.batch.controls
    controls.gain.fill_(1)
    controls.shift.zero_()
    weights = run(reference.head_weights, case, scores)
    output = ops.attention(case.query, case.key_cache, case.value_cache, case.batch, 1, *scores)
    values = [v.repeat_interleave(2, 1) for v in case.values]
    rows = [weights[:1], weights[1:]]
    for own, value, wanted in zip(rows, values, (output[:1], output[1:]), strict=True):
        found = torch.einsum("nhk,khd->nhd", own[..., : len(value)], value)
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-7)


def test_variants_name_every_argument():
    names = [name for name, *_ in kernel.variants()]
    assert len(names) == len(set(names))
    for _, jit, types, constants, warps, stages in kernel.variants():
        assert (warps, stages) == kernel.CONFIG
        assert set(jit.arg_names) <= set(types) | set(constants)
