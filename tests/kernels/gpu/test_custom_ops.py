"""The kernels as PyTorch operators: their schemas are true, and a batch survives the journey."""

from dataclasses import fields, replace

import pytest
import torch

from saccade_kernels import ops, reference
from saccade_kernels.batch import Emission
from saccade_kernels.controls import CLASSES
from saccade_kernels.gpu import backend, custom_ops

CHECKS = ("test_schema", "test_faketensor")
SIZES = dict(queries=(1, 1, 5, 3), contexts=(70, 7, 64, 9))


@pytest.fixture
def case(make_case):
    made = make_case(**SIZES, dim=16, dtype=torch.float32)
    new = made.new(made.keys), made.new(made.values)
    reference.store(*new, made.key_cache, made.value_cache, made.batch.slots)
    return made


@pytest.fixture
def triton(monkeypatch):
    """The Triton backend on the CPU, by the interpreter."""
    monkeypatch.setattr(ops, "_backend", lambda query: backend)


@pytest.fixture
def traced(monkeypatch, triton):
    """As if a graph were recorded."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def emission(case):
    rows = case.query.shape[:2]
    return Emission(torch.zeros(*rows, CLASSES), torch.zeros(rows))


@pytest.mark.parametrize("plain", [False, True], ids=["edited", "plain"])
def test_a_batch_survives_the_journey(case, plain):
    batch = case.plain() if plain else case.batch
    again = custom_ops.unflatten(*custom_ops.flatten(batch, 1), 1)
    for field in fields(batch):
        before, after = getattr(batch, field.name), getattr(again, field.name)
        if field.name not in ("controls", "tags", "derived"):
            assert before is after if isinstance(before, torch.Tensor) else before == after
    assert again.edit(1) == batch.edit(1)
    if not plain:
        again.validate()
        for table, same in zip(batch.tables(), again.tables(), strict=True):
            for field in fields(table):
                assert getattr(table, field.name) is getattr(same, field.name)


@pytest.mark.parametrize("emits", [False, True], ids=["", "emits"])
def test_decode_and_prefill_are_operators(case, emits):
    emit = emission(case) if emits else None
    decodes = case.batch.num_decodes
    for op, rows in (
        (custom_ops.decode_op, slice(0, decodes)),
        (custom_ops.prefill_op, slice(decodes, None)),
    ):
        tensors, moved, numbers = custom_ops.flatten(case.batch, 1)
        emitted = (None, None) if emit is None else (emit.masses[rows], emit.lse[rows])
        caches = (case.key_cache, case.value_cache)
        arguments = (case.query[rows], *caches, tensors, moved, *emitted, numbers)
        torch.library.opcheck(op, (*arguments, 1, 0.25, 0.0, 0), test_utils=CHECKS)


def test_store_is_an_operator(case):
    new = case.new(case.keys), case.new(case.values)
    arguments = (*new, case.key_cache, case.value_cache, case.batch.slots)
    torch.library.opcheck(custom_ops.store_op, arguments, test_utils=CHECKS)


def test_measures_are_operators(case):
    flat, last = custom_ops.flatten(case.batch, 1), (1, 0.25, 0.0, 0)
    emit, decodes = emission(case), case.batch.num_decodes
    grads = torch.randn(decodes, 2, *case.query.shape[1:])
    query, caches = case.query[:decodes], (case.key_cache, case.value_cache)
    arguments = (query, grads, *caches, *flat, *last)
    torch.library.opcheck(custom_ops.saliency_op, arguments, test_utils=CHECKS)
    seqs = case.batch.context_lens.numel()
    for op, chosen in (
        (custom_ops.column_sums_op, torch.zeros(seqs, dtype=torch.int32)),
        (custom_ops.attention_rows_op, torch.tensor([0, 4], dtype=torch.int32)),
    ):
        arguments = (case.query, case.key_cache, *flat, *last, emit.lse, chosen)
        torch.library.opcheck(op, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("emits", [False, True], ids=["", "emits"])
@pytest.mark.parametrize("form", ["triton", "traced"])
def test_every_form_gives_the_same(case, request, form, emits):
    """Through ops.attention: store, decode, prefill; the reference does it first."""
    wanted = emission(case) if emits else None
    expected = case.run(emit=wanted)
    case.tables[1].moved.zero_()
    request.getfixturevalue(form)
    found = emission(case) if emits else None
    output = case.run(emit=found)
    torch.testing.assert_close(output, expected, rtol=2e-5, atol=2e-5)
    if emits:
        torch.testing.assert_close(found.masses, wanted.masses, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(found.lse, wanted.lse, rtol=2e-5, atol=2e-5)
    assert case.tables[1].moved.any()


@pytest.mark.parametrize("form", ["triton", "traced"])
def test_measures_give_the_same_in_every_form(case, request, form):
    emit, decodes = emission(case), case.batch.num_decodes
    case.run(emit=emit)
    grads = torch.randn(decodes, 3, *case.query.shape[1:])
    first = torch.zeros(case.batch.context_lens.numel(), dtype=torch.int32)

    def measure():
        batch, caches = replace(case.batch, derived={}), (case.key_cache, case.value_cache)
        last = (batch, 1, 0.25)
        made = ops.saliency(case.query[:decodes], grads, *caches, *last)
        columns = (case.query, case.key_cache, *last, 0.0, 0, emit.lse)
        return [
            *(getattr(made, field.name) for field in fields(made)),
            ops.column_sums(*columns, first),
            ops.attention_rows(*columns, torch.tensor([0, 4], dtype=torch.int32)),
        ]

    expected = measure()
    request.getfixturevalue(form)
    for found, wanted in zip(measure(), expected, strict=True):
        torch.testing.assert_close(found, wanted.to(found.dtype), rtol=1e-4, atol=1e-4)
