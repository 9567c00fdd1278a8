"""Classes of single heads in the Triton kernels, run by the interpreter, against the reference."""

from dataclasses import replace

import pytest
import torch

from saccade_kernels import gradients, reference
from saccade_kernels.batch import Emission
from saccade_kernels.controls import CLASSES
from saccade_kernels.gpu import decode, prefill, saliency
from saccade_kernels.gpu.tuning import DecodeConfig, PrefillConfig

DECODE = DecodeConfig(num_warps=4, num_stages=3, split=64, max_splits=4)
PREFILL = PrefillConfig(block_m=16, num_warps=4, num_stages=2)
DECODES = {"queries": (1, 1, 1), "contexts": (130, 7, 65)}
PREFILLS = {"queries": (1, 9, 3), "contexts": (9, 70, 6)}
SHAPES = [
    (2, 2, 64, 2),
    (4, 1, 80, 3),
    (7, 1, 32, 8),
    (6, 2, 16, 5),
]  # heads, kv_heads, dim, classes


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that what a kernel fails to write shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.fixture
def make(make_case, per_head):
    """A case whose keys are stored, the first and the last sequence with heads apart."""

    def made(sizes, classes=4, sequences=(0, 2), **options):
        options = {"dtype": torch.float32, "classes": classes, **sizes, **options}
        case = make_case(**options)
        case.batch = replace(case.batch, classes=classes)
        caches = (case.key_cache, case.value_cache, case.batch.slots)
        reference.store(case.new(case.keys), case.new(case.values), *caches)
        return per_head(case, sequences=sequences)

    return made


def call(function, case, wide=False, **options):
    tensors = (case.query, case.key_cache, case.value_cache)
    if function in (prefill.prefill, reference.prefill):
        tensors = (case.query[case.batch.num_decodes :], *tensors[1:])
    if wide:
        tensors = tuple(tensor.double() for tensor in tensors)
    batch, scale = replace(case.batch, derived={}), case.query.shape[-1] ** -0.5
    return function(*tensors, batch, 1, scale, **options)


def compare(case, kernel, specification, config, **options):
    case.tables[1].moved.zero_()
    wanted = call(specification, case, wide=True, **options)
    moved = case.tables[1].moved.clone()
    case.tables[1].moved.zero_()
    found = call(kernel, case, config=config, **options)
    tolerance = {torch.float32: 3e-5, torch.float16: 6e-3, torch.bfloat16: 4e-2}[case.query.dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    assert torch.equal(case.tables[1].moved, moved)


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "classes"), SHAPES)
def test_decode(make, heads, kv_heads, dim, classes):
    case = make(DECODES, heads=heads, kv_heads=kv_heads, dim=dim, classes=classes)
    compare(case, decode.decode, reference.decode, DECODE)


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "classes"), SHAPES[:3])
def test_prefill(make, heads, kv_heads, dim, classes):
    case = make(PREFILLS, heads=heads, kv_heads=kv_heads, dim=dim, classes=classes)
    compare(case, prefill.prefill, reference.prefill, PREFILL)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves(make, dtype):
    compare(make(DECODES, dtype=dtype), decode.decode, reference.decode, DECODE)
    compare(make(PREFILLS, dtype=dtype), prefill.prefill, reference.prefill, PREFILL)


def test_hidden_keys_window_and_soft_cap(make):
    options = {"softcap": 1.5, "window": 40}
    compare(make(DECODES, hide=True), decode.decode, reference.decode, DECODE, **options)
    compare(make(PREFILLS, hide=True), prefill.prefill, reference.prefill, PREFILL, **options)


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_emission(make, kind):
    case = make(DECODES if kind == "decode" else PREFILLS)
    kernel, specification = {
        "decode": (decode.decode, reference.decode),
        "prefill": (prefill.prefill, reference.prefill),
    }[kind]
    rows = len(case.query) - (case.batch.num_decodes if kind == "prefill" else 0)
    sizes = (rows, case.query.shape[1])
    found, wanted = (
        Emission(torch.full((*sizes, CLASSES), torch.nan), torch.full(sizes, torch.nan))
        for _ in range(2)
    )
    call(kernel, case, config=DECODE if kind == "decode" else PREFILL, emit=found)
    call(specification, case, wide=True, emit=wanted)
    torch.testing.assert_close(found.masses, wanted.masses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.lse, wanted.lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_neighbours_keep_their_bits(make, make_case, kind):
    sizes, kernel, config = {
        "decode": (DECODES, decode.decode, DECODE),
        "prefill": (PREFILLS, prefill.prefill, PREFILL),
    }[kind]
    with_one, with_none = make(sizes), make(sizes, sequences=())
    with_none.batch = replace(with_none.batch, per_head_classes=False)
    found, alone = (call(kernel, case, config=config) for case in (with_one, with_none))
    own = [0, -1] if kind == "decode" else [-3, -2, -1]
    others = [i for i in range(len(found)) if i - len(found) not in own and i not in own]
    assert torch.equal(found[others], alone[others])
    assert not torch.equal(found[own], alone[own])


@pytest.mark.parametrize(("heads", "kv_heads", "classes"), [(4, 2, 4), (7, 1, 3), (2, 2, 2)])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_saliency(make, heads, kv_heads, classes, softcap):
    case = make(DECODES, heads=heads, kv_heads=kv_heads, classes=classes)
    losses = torch.randn(3, 5, *case.query.shape[1:])
    batch, caches = case.batch, (case.key_cache, case.value_cache)
    found = saliency.saliency(
        case.query, losses, *caches, replace(batch, derived={}), 1, 0.3, softcap
    )
    wide = (case.query.double(), losses.double(), *(c.double() for c in caches))
    wanted = gradients.saliency(*wide, replace(batch, derived={}), 1, 0.3, softcap)
    context = batch.context_lens[: batch.num_decodes, None, None, None]
    seen = torch.arange(wanted.saliency.shape[-1]) < context  # of other keys it is anything
    found = replace(found, saliency=found.saliency.masked_fill(~seen, 0.0))
    wanted = replace(wanted, saliency=wanted.saliency.masked_fill(~seen, 0.0))
    for name in ("saliency", "grad_query", "grad_key", "grad_value"):
        pair = getattr(found, name).double(), getattr(wanted, name)
        torch.testing.assert_close(*pair, rtol=2e-4, atol=2e-5)
