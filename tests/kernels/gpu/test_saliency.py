"""Saliency and gradients: the reference against autograd, the Triton kernels against it."""

from dataclasses import fields, replace

import pytest
import torch

from saccade_kernels import gradients, reference
from saccade_kernels.batch import PAGE
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, ControlShape, Edit, Program
from saccade_kernels.gpu import device
from saccade_kernels.gpu import saliency as kernel
from saccade_kernels.gradients import RowGradients

CONTEXTS = (130, 7, 0, 64, 1)  # 0: padding
NAMES = [field.name for field in fields(RowGradients)]


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch):
    """So that short contexts have several."""
    monkeypatch.setattr(kernel, "SPLIT", PAGE)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that reading what nobody wrote shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.fixture
def make_decodes(make_case):
    """Decodes whose keys are stored, and random gradients of their outputs."""

    def make(contexts=CONTEXTS, losses=3, classes=4, dtype=torch.float32, **options):
        queries = (1,) * len(contexts)
        case = make_case(queries, contexts, classes=classes, dtype=dtype, **options)
        case.batch = replace(case.batch, classes=classes)
        new = (case.new(case.keys), case.new(case.values))
        reference.store(*new, case.key_cache, case.value_cache, case.batch.slots)
        seqs, heads, dim = case.query.shape
        grad = torch.randn(seqs, losses, heads, dim, dtype=torch.float64).to(dtype)
        padded = case.batch.context_lens == 0
        grad[padded], case.query[padded] = torch.nan, torch.nan
        return case, grad

    return make


def run(op, case, grad, batch=None, layer=1, **options):
    batch = replace(batch or case.batch, derived={})
    scale = case.query.shape[-1] ** -0.5
    return op(case.query, grad, case.key_cache, case.value_cache, batch, layer, scale, **options)


def specified(case, grad, batch=None, **options):
    """The reference on the same numbers in float64."""
    names = ("query", "key_cache", "value_cache")
    wide = replace(case, **{name: getattr(case, name).double() for name in names})
    return run(gradients.saliency, wide, grad.double(), batch, **options)


def largest(tensor):
    return float(tensor.abs().amax()) if tensor.numel() else 0.0


def assert_same(result, wanted, tolerance):
    """Each tensor to ``tolerance`` of its largest entry; one key alone has no grad_query."""
    floor = 0.1 * largest(wanted.saliency)
    for name in NAMES:
        got, true = getattr(result, name).double(), getattr(wanted, name).double()
        assert got.shape == true.shape, name
        limit = tolerance * max(largest(true), floor)
        torch.testing.assert_close(got, true, rtol=0, atol=limit, msg=lambda m, n=name: f"{n}: {m}")


def run_kernel(case, grad, batch=None, window=0, **options):
    """With zeros for the keys that a row does not see, of which the kernel says nothing."""
    result = run(kernel.saliency, case, grad, batch, window=window, **options)
    at = torch.arange(result.saliency.shape[-1])
    context = case.batch.context_lens[:, None]
    seen = (at < context) & (at >= (context - window if window else 0))
    masked = result.saliency.masked_fill(~seen[: len(result.saliency), None, None], 0.0)
    return replace(result, saliency=masked)


def check(case, grad, batch=None, tolerance=5e-6, **options):
    result = run_kernel(case, grad, batch, **options)
    assert_same(result, specified(case, grad, batch, **options), tolerance)
    return result


# The whole edited attention as one differentiable formula, in the words of controls.py.


def edited_masses(mass, program, layer, h):
    """m' of class masses [C], whose zeros are the empty classes."""
    for weight, threshold in zip(
        program.gate_weight[layer, h], program.gate_threshold[layer, h], strict=True
    ):
        if float(mass.detach() @ torch.from_numpy(weight).double()) < threshold:
            return mass
    target = torch.from_numpy(program.transform[layer, h]).double() @ mass
    present = mass > 0
    kept = target[present].sum()
    if kept == 0 and target.sum() > 0:
        return mass
    shared = torch.where(present, target, 0.0)
    return shared * (target.sum() / kept) if kept > 0 else shared


def edited_row(case, seq, h, query, key, value, layer=1, softcap=0.0, window=0):
    """Output and A' of one head, from its query [D], keys and values [context, D]."""
    context = len(key)
    program = case.programs[int(case.batch.control_rows[seq])]
    tag_row = int(case.batch.tag_rows[seq])
    tags = case.tables[1].tags[tag_row, layer, :context].long()
    betas = case.tables[1].weights[tag_row, :, :context].double()
    position = torch.arange(context)
    visible = (tags != NEVER_ATTEND) & (position >= context - window if window else True)
    tags = tags.clamp(max=CLASSES - 1)
    by, absolute, bias = (
        torch.from_numpy(getattr(program, name)[layer, h]).double()[tags]
        for name in ("scale", "absolute", "bias")
    )
    z = key @ query * query.shape[-1] ** -0.5
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    z = (1 + by) * z + absolute * z.abs() + bias
    z = z + torch.from_numpy(program.weight[layer, h]).double() @ betas
    z = torch.where(visible, z, -torch.inf if visible.any() else 0.0)
    attention = torch.softmax(z, 0) * visible
    members = torch.nn.functional.one_hot(tags, CLASSES).double()
    mass = attention @ members
    after = edited_masses(mass, program, layer, h)
    attention = attention * (after / torch.where(mass > 0, mass, 1.0))[tags]
    shift = torch.from_numpy(program.shift[layer, h]).double()
    return float(program.gain[layer, h]) * (attention @ value) + shift, attention


def by_autograd(case, grad, **options):
    """RowGradients by differentiating :func:`edited_row`."""
    losses, heads, kv_heads = grad.shape[1], grad.shape[2], case.key_cache.shape[2]
    wanted = gradients.empty_gradients(grad, kv_heads, case.batch.max_context, torch.float64)
    for seq, context in enumerate(case.batch.context_lens.tolist()):
        for h in range(heads if context else 0):
            g = h * kv_heads // heads
            inputs = (case.query[seq, h], case.keys[seq][:, g], case.values[seq][:, g])
            with torch.enable_grad():
                leaves = [each.double().clone().requires_grad_() for each in inputs]
                output, attention = edited_row(case, seq, h, *leaves, **options)
            for m in range(losses):
                found = torch.autograd.grad(
                    output, [*leaves, attention], grad[seq, m, h].double(), retain_graph=True
                )
                wanted.grad_query[seq, m, h] = found[0]
                wanted.grad_key[seq, m, g] += found[1][-1]
                wanted.grad_value[seq, m, g] += found[2][-1]
                wanted.saliency[seq, m, h, :context] = (attention * found[3]).abs().detach()
    return wanted


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("hide", [False, True])
def test_reference_is_autograd(make_decodes, softcap, window, hide):
    case, grad = make_decodes(hide=hide, dtype=torch.float64)
    options = dict(softcap=softcap, window=window)
    result = run(gradients.saliency, case, grad, **options)
    assert_same(result, by_autograd(case, grad, **options), 1e-11)


def test_reference_follows_each_program_and_gate(make_decodes):
    """Among random programs gates are open, shut, and the identity is one of them."""
    case, grad = make_decodes((70,) * 8, losses=1, programs=4, dtype=torch.float64, classes=8)
    case.batch.control_rows.copy_(torch.tensor([0, 1, 2, 3, 4, 1, 2, 3]))
    for layer in (0, 1):
        result = run(gradients.saliency, case, grad, layer=layer)
        assert_same(result, by_autograd(case, grad, layer=layer), 1e-11)


def with_empty_class(case, transform, tagged=(0, 1)):
    """Keys of two classes only, and a program that moves masses as ``transform`` says."""
    heads, dim = case.query.shape[1:]
    program = Program.identity(ControlShape(2, heads, dim))
    program.transform[..., :3, :3] = torch.tensor(transform).numpy()
    program.gain[:] = 1.5
    case.write(1, program)
    case.batch.control_rows.fill_(1)
    tags = case.tables[1].tags
    drawn = torch.tensor(tagged, dtype=torch.uint8)[torch.randint(len(tagged), tags.shape)]
    tags.copy_(drawn)
    return case


TRANSFORMS = {
    "returned": [[0.5, 0.2, 0.1], [0.3, 0.3, 0.2], [0.2, 0.5, 0.7]],
    "stuck": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
    "removed": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    "not conserved": [[2.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.3, 0.0, 1.0]],
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_empty_class(make_decodes, transform):
    case, grad = make_decodes((70, 3), dtype=torch.float64)
    case = with_empty_class(case, transform)
    wanted = by_autograd(case, grad)
    assert_same(run(gradients.saliency, case, grad), wanted, 1e-11)
    names = ("query", "key_cache", "value_cache")
    case = replace(case, **{name: getattr(case, name).float() for name in names})
    assert_same(run_kernel(case, grad.float()), wanted, 5e-6)


def test_faint_class(make_decodes):
    """One so faint that it counts as empty has keys, and they keep what little they have."""
    case, grad = make_decodes((70, 3))
    case = with_empty_class(case, TRANSFORMS["returned"], tagged=(0, 1, 2))
    case.programs[1].bias[..., 2] = -80.0
    case.write(1, case.programs[1])
    check(case, grad)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 5e-6), (torch.float16, 4e-3), (torch.bfloat16, 4e-2)],
    ids=str,
)
@pytest.mark.parametrize("edited", [False, True], ids=["plain", "edited"])
def test_kernel_is_the_reference(make_decodes, dtype, tolerance, edited):
    case, grad = make_decodes(dtype=dtype)
    result = check(case, grad, case.batch if edited else case.plain(), tolerance)
    assert result.saliency.dtype == torch.float32
    assert {getattr(result, name).dtype for name in NAMES[1:]} == {dtype}


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "classes", "losses"),
    [
        (2, 2, 64, 1, 1),
        (2, 1, 80, 2, 5),
        (4, 1, 96, 4, 16),
        (7, 1, 32, 8, 6),
        (8, 1, 16, 3, 2),
        (6, 2, 128, 5, 4),
        (2, 2, 256, 8, 16),
    ],
)
def test_shapes(make_decodes, heads, kv_heads, dim, classes, losses):
    sizes = dict(heads=heads, kv_heads=kv_heads, dim=dim, classes=classes)
    case, grad = make_decodes((70, 3), losses, **sizes)
    check(case, grad)


def test_plain_shapes(make_decodes):
    case, grad = make_decodes((70, 3), 5, heads=7, kv_heads=1, dim=80)
    check(case, grad, case.plain())


@pytest.mark.parametrize(("window", "softcap"), [(1, 0.0), (40, 1.5), (65, 0.0), (0, 0.7)])
def test_window_and_soft_cap(make_decodes, window, softcap):
    case, grad = make_decodes()
    for batch in (case.batch, case.plain()):
        check(case, grad, batch, window=window, softcap=softcap)


def test_hidden_keys(make_decodes):
    """The second sequence hides its own key, the last one all it has."""
    case, grad = make_decodes((130, 7, 66, 1), hide=True)
    case.tables[1].tags[2, :, 6] = NEVER_ATTEND
    case.tables[1].tags[4, :, 0] = NEVER_ATTEND
    result = check(case, grad)
    assert not result.grad_key[1].any()
    assert not any(getattr(result, name)[3].any() for name in NAMES)


def test_knocked_out_class(make_decodes):
    """Of the second sequence all keys are, which leaves them as equals."""
    case, grad = make_decodes((70, 7))
    program = Program.identity(ControlShape(2, *case.query.shape[1:]))
    program.bias[..., 1] = -torch.inf
    case.write(1, program)
    case.batch.control_rows.fill_(1)
    tags = case.tables[1].tags
    tags[1, :, :2] = torch.tensor([0, 1], dtype=torch.uint8)
    tags[2, :, :7] = 1
    result = check(case, grad)
    assert not result.saliency[0, :, :, 1].any()
    assert result.saliency[1, :, :, :7].all()


def test_small_gradients_survive_half_precision(make_decodes):
    case, grad = make_decodes((70, 3), dtype=torch.float16)
    check(case, grad.float() * 1e-9, tolerance=4e-3)


def test_it_repeats_whatever_the_neighbours(make_decodes):
    case, grad = make_decodes()
    result = run_kernel(case, grad)
    again = run_kernel(case, grad)
    table, lens = case.batch.page_table, case.batch.context_lens
    alone = replace(
        case.batch,
        page_table=table[1:2],
        context_lens=lens[1:2],
        control_rows=case.batch.control_rows[1:2],
        tag_rows=case.batch.tag_rows[1:2],
        num_decodes=1,
        max_context=int(lens[1]),
    )
    case.query = case.query[1:2]
    single = run(kernel.saliency, case, grad[1:2], alone)
    for name in NAMES:
        assert torch.equal(getattr(result, name), getattr(again, name))
        one = getattr(single, name)[0]
        assert torch.equal(getattr(result, name)[1][..., : one.shape[-1]], one)


def test_fused_projection_slices(make_decodes):
    """Queries may be a part of a wider tensor."""
    case, grad = make_decodes((70, 3))
    wide = torch.full((2, 9, case.query.shape[2] + 3), torch.nan)
    wide[:, 2:6, 1:-2] = case.query
    wanted = specified(case, grad)
    case.query = wide[:, 2:6, 1:-2]
    assert_same(run_kernel(case, grad), wanted, 5e-6)


def test_nothing_to_do(make_decodes):
    case, grad = make_decodes((0, 0))
    check(case, grad)
    case, grad = make_decodes((3,))
    check(case, grad[:, :0])


def test_an_edited_layer_needs_its_layer(make_decodes):
    """Programs and tags differ by layer."""
    case, grad = make_decodes((70, 3))
    check(case, grad, layer=0)
    only = replace(case.batch, edits=(Edit.NONE, case.batch.edits[1]))
    assert_same(
        run_kernel(case, grad, only, layer=0),
        specified(case, grad, case.plain(), layer=0),
        5e-6,
    )


def test_where_a_block_may_have_less_memory_tiles_are_smaller():
    def launch(capability, dim, dtype=torch.bfloat16):
        with device.on(capability):
            shape = kernel.shape_of(28, 4, dim, 5, 8, dtype)
            rows = kernel.rows_of(kernel.saliency_kernel, shape)
            return rows, *kernel.launch_of(kernel.saliency_kernel, rows, dim, dtype)

    assert launch(80, 128) == launch(90, 128) == (32, 8, 3)
    assert launch(86, 128) == (32, 8, 2)
    assert launch(90, 256) == (32, 8, 2)
    assert launch(86, 256) == (16, 8, 2)
    assert launch(90, 256, torch.float32) == (16, 16, 2)
    assert launch(86, 256, torch.float32) == (16, 16, 1)


def test_variants_name_every_argument():
    names = [name for name, *_ in kernel.variants()]
    assert len(names) == len(set(names))
    for _, jit, types, constants, warps, stages in kernel.variants():
        assert warps in (4, 8, 16)
        assert stages in (2, 3)
        assert set(jit.arg_names) <= set(types) | set(constants)
