"""Shapes of the plain prefill, run by the interpreter: pages a step, and specialised warps."""

from dataclasses import replace

import pytest
import torch

from saccade_kernels import reference
from saccade_kernels.batch import Prefill, Run
from saccade_kernels.controls import ControlShape, Edit, Program
from saccade_kernels.gpu import prefill as launcher
from saccade_kernels.gpu.prefill import plain_form, prefill
from saccade_kernels.gpu.prefill_plain import prefill_plain_kernel
from saccade_kernels.gpu.prefill_specialised import prefill_specialised_kernel
from saccade_kernels.gpu.tuning import PrefillConfig

ONE_PAGE = PrefillConfig(block_m=16, num_warps=4, num_stages=2)
TWO_PAGES = replace(ONE_PAGE, block_keys=128)
SPECIALISED = replace(ONE_PAGE, specialised=True)
SHAPES = pytest.mark.parametrize("config", [TWO_PAGES, SPECIALISED], ids=["two pages", "groups"])

CONTEXTS = (5, 130, 200)
QUERIES = (5, 20, 17)


@pytest.fixture
def make(make_case):
    """Prefills whose keys are stored; stale slots are NaN."""

    def made(**options):
        sizes = {"heads": 2, "kv_heads": 1, "dim": 128, "dtype": torch.float16}
        case = make_case(QUERIES, CONTEXTS, **{**sizes, **options})
        caches = (case.key_cache, case.value_cache, case.batch.slots)
        reference.store(case.new(case.keys), case.new(case.values), *caches)
        return case

    return made


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """A row that no launch writes is NaN."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def run(case, batch, config, **options):
    batch = replace(batch, derived={})
    return prefill(
        case.query, case.key_cache, case.value_cache, batch, 1, 0.1, config=config, **options
    )


def expected(case, batch, **options):
    wide = (tensor.double() for tensor in (case.query, case.key_cache, case.value_cache))
    return reference.prefill(*wide, replace(batch, derived={}), 1, 0.1, **options)


@SHAPES
@pytest.mark.parametrize(
    ("dtype", "window"), [(torch.float16, 1), (torch.float16, 70), (torch.bfloat16, 0)], ids=str
)
def test_it_is_causal_attention(make, config, dtype, window):
    case = make(dtype=dtype)
    found = run(case, case.plain(), config, window=window)
    tolerance = 4e-3 if dtype == torch.float16 else 3e-2
    wanted = expected(case, case.plain(), window=window)
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 1, 64), (3, 1, 80), (1, 1, 256)])
def test_two_pages_a_step_serve_all_heads(make, heads, kv_heads, dim):
    case = make(heads=heads, kv_heads=kv_heads, dim=dim, dtype=torch.float32)
    found = run(case, case.plain(), TWO_PAGES, softcap=1.5)
    wanted = expected(case, case.plain(), softcap=1.5)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5)


def test_groups_of_warps_add_in_the_order_of_one_page_a_step(make):
    case = make()
    assert torch.equal(
        run(case, case.plain(), SPECIALISED, window=70),
        run(case, case.plain(), ONE_PAGE, window=70),
    )


@SHAPES
@pytest.mark.parametrize("window", [0, 125])
def test_chunks_get_the_bits_of_the_whole(make, config, window):
    """Steps begin at multiples of their keys in the sequence, wherever a block begins."""
    case = make(heads=1)
    plain = case.plain()
    context, queries = CONTEXTS[2], 17
    first = sum(QUERIES[:2])
    alone = {name: getattr(plain, name)[2:] for name in ("page_table", "tag_rows")}
    batch = replace(plain, **alone, prefills=(Prefill(queries, context, (Run(queries, 0),)),))
    rows = replace(case, query=case.query[first:])
    whole, parts = run(rows, batch, config, window=window), []
    for start, end in ((0, 9), (9, 10), (10, 17)):
        length = end - start
        chunk = Prefill(length, context - queries + end, (Run(length, 0),))
        part = replace(case, query=case.query[first + start : first + end])
        parts.append(run(part, replace(batch, prefills=(chunk,)), config, window=window))
    assert torch.equal(torch.cat(parts), whole)


@SHAPES
def test_beside_edits_plain_pairs_get_the_bits_they_get_alone(make, with_edits, config):
    """Of four heads one has its scores edited, one its output; a run follows no program."""
    case = make(heads=4)
    full = case.programs[1]
    program = Program.identity(ControlShape(2, 4, 128))
    program.bias[:, 1] = full.bias[:, 1]
    program.gain[:, 2], program.shift[:, 2] = full.gain[:, 2], full.shift[:, 2]
    case.write(1, program)
    rows = torch.ones_like(case.batch.control_rows)
    rows[10:20] = 0
    batch = with_edits(replace(case.batch, control_rows=rows), (Edit.SCORE | Edit.HEAD,) * 2)
    found, plain = run(case, batch, config), run(case, case.plain(), config)
    assert torch.equal(found[:, [0, 3]], plain[:, [0, 3]])
    assert torch.equal(found[10:20], plain[10:20])
    torch.testing.assert_close(found.double(), expected(case, batch), rtol=6e-3, atol=6e-3)
    edited = found[rows == 1]
    assert not torch.equal(edited[:, 1], plain[rows == 1][:, 1])
    assert not torch.equal(edited[:, 2], plain[rows == 1][:, 2])


@pytest.mark.parametrize(
    "config", [ONE_PAGE, TWO_PAGES, SPECIALISED], ids=["one page", "two pages", "groups"]
)
@pytest.mark.parametrize("form", ["plain", "edited"])
def test_a_launch_leaves_the_pairs_of_the_other_alone(make, with_edits, monkeypatch, form, config):
    """Of two heads the second is edited."""
    case, launch = make(), launcher.launch
    program = Program.identity(ControlShape(2, 2, 128))
    program.bias[:, 1] = case.programs[1].bias[:, 1]
    case.write(1, program)
    rows = torch.ones_like(case.batch.control_rows)
    batch = with_edits(replace(case.batch, control_rows=rows), (Edit.SCORE,) * 2)

    def only(kernel, *arguments):
        plain = kernel in (prefill_plain_kernel, prefill_specialised_kernel)
        if plain == (form == "plain"):
            launch(kernel, *arguments)

    monkeypatch.setattr(launcher, "launch", only)
    written = ~run(case, batch, config).isnan()
    own, other = (0, 1) if form == "plain" else (1, 0)
    assert written[:, own].all()
    assert not written[:, other].any()


@pytest.mark.parametrize(
    ("dim", "dtype", "capped"),
    [(64, torch.bfloat16, False), (128, torch.float32, False), (128, torch.bfloat16, True)],
)
def test_groups_fall_back_to_all_warps_doing_the_same(dim, dtype, capped):
    config = PrefillConfig(128, 4, 3, specialised=True)
    kernel, used = plain_form(config, dim, dtype, capped)
    assert kernel is prefill_plain_kernel
    assert used == PrefillConfig(128, 8, 3)


def test_groups_are_taken_where_they_compile():
    config = PrefillConfig(128, 4, 3, specialised=True)
    kernel, used = plain_form(config, 128, torch.bfloat16, False)
    assert kernel is prefill_specialised_kernel
    assert used.descriptors, "which need scratch memory"
    assert launcher.SPECIALISED_DIM == 128


def test_forms_may_be_launched_each_in_its_own_way(make, monkeypatch):
    case, found = make(), {}
    monkeypatch.setattr(
        launcher,
        "launch",
        lambda kernel, grid, arguments, config: found.update({kernel: (arguments["KEYS"], config)}),
    )
    run(case, case.batch, {"plain": replace(ONE_PAGE, num_stages=7, block_keys=128)})
    assert found.pop(prefill_plain_kernel) == (128, (4, 7))
    assert found
    assert all(config[1] < 7 for _, config in found.values()), "as the table says"
