"""Pages by class in the Triton decode, run by the interpreter, against the reference."""

from dataclasses import replace

import pytest
import torch

from saccade_kernels import reference
from saccade_kernels.batch import PAGE
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, Edit
from saccade_kernels.gpu import decode as kernel
from saccade_kernels.gpu.page_classes import WHOLE, page_classes
from saccade_kernels.gpu.tuning import DecodeConfig

CONFIG = DecodeConfig(num_warps=4, num_stages=3, split=256, max_splits=4)
LAYER = 1


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that what a kernel fails to write shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.fixture
def make(make_case):
    """One decode over ``context`` keys, two heads of one key head, tagged by what it is given."""

    def made(tags, context=None, **options):
        tags = torch.tensor(tags, dtype=torch.uint8)
        context = context or len(tags)
        options = {"heads": 2, "kv_heads": 1, "dtype": torch.float32, **options}
        case = make_case(queries=(1,), contexts=(context,), programs=1, **options)
        caches = (case.key_cache, case.value_cache, case.batch.slots)
        reference.store(case.new(case.keys), case.new(case.values), *caches)
        case.tables[1].tags[1, :, :context] = tags[:context]
        case.batch.control_rows[:] = 1
        return case

    return made


def only(case, with_edits, *kinds):
    """The case with a program of these kinds of edits alone: mass, score, absolute, weight."""
    program = case.programs[1]
    if "mass" not in kinds:
        program.transform[:] = torch.eye(CLASSES).numpy()
    if "score" not in kinds:
        program.scale[:], program.bias[:] = 0, 0
    if "absolute" not in kinds:
        program.absolute[:] = 0
    if "weight" not in kinds:
        program.weight[:] = 0
    program.gain[:], program.shift[:] = 1, 0
    case.write(1, program)
    case.batch = with_edits(case.batch, (Edit.SCORE | Edit.MASS | Edit.HIDE,) * 2)
    return case


def run(case, config=CONFIG, batch=None, **options):
    batch = replace(batch or case.batch, derived={})
    caches, scale = (case.key_cache, case.value_cache), case.query.shape[-1] ** -0.5
    return kernel.decode(case.query, *caches, batch, LAYER, scale, config=config, **options)


def compare(case, tolerance=2e-5, config=CONFIG, **options):
    wide = (t.double() for t in (case.query, case.key_cache, case.value_cache))
    scale = case.query.shape[-1] ** -0.5
    wanted = reference.decode(*wide, replace(case.batch, derived={}), LAYER, scale, **options)
    found = run(case, config, **options)
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


def pages(*runs):
    """Tags of pages, each of one class."""
    return [klass for klass in runs for _ in range(PAGE)]


def test_words_of_pages(make):
    """Whole, mixed and hidden pages; the page of the newest key has none, nor what lies behind."""
    tags = pages(0, 3, 0, NEVER_ATTEND, 7)
    tags[2 * PAGE] = 5
    tags[3 * PAGE + 9] = 2
    case = make([*tags, *pages(1)], context=6 * PAGE)
    case.tables[1].tags[1, 0] = NEVER_ATTEND
    found = page_classes(case.batch, LAYER)
    whole = WHOLE.value
    assert found.shape == (1, 2, 6)
    assert found[0, LAYER, :5].tolist() == [whole | 1, whole | 8, 0b100001, 0b100, whole | 0x80]
    assert found[0, 0, :5].tolist() == [0] * 5


def test_words_hold_for_the_layer_that_asks_where_tags_settle(make):
    case = make(pages(0, 0, 0))
    batch = replace(case.batch, settles=True, derived={})
    case.tables[1].tags[1, LAYER, 3] = 1
    assert page_classes(batch, LAYER)[0, LAYER, 0] == 0b11
    case.tables[1].tags[1, LAYER, 3] = 0
    assert page_classes(batch, LAYER)[0, LAYER, 0] == WHOLE.value | 1


def test_words_are_made_once_a_step_where_none_settle(make):
    case = make(pages(0, 0))
    batch = replace(case.batch, derived={})
    first = page_classes(batch, 0)
    case.tables[1].tags[1, LAYER, 3] = 1
    assert page_classes(batch, LAYER) is first
    assert first[0, LAYER, 0] == WHOLE.value | 1


@pytest.mark.parametrize("block_keys", [64, 16])
@pytest.mark.parametrize("kinds", [("mass",), ("score",), ("mass", "score")])
def test_whole_and_mixed_pages(make, with_edits, kinds, block_keys):
    tags = pages(0, 2, 2, 1)
    tags[3 * PAGE + 7] = 3
    case = only(make([*tags, *[2] * 9]), with_edits, *kinds)
    compare(case, config=replace(CONFIG, block_keys=block_keys))


@pytest.mark.parametrize("kind", ["absolute", "weight"])
def test_scores_that_are_more_than_a_line(make, with_edits, kind):
    compare(only(make([*pages(1, 1, 0), 0]), with_edits, kind))


def test_negative_factors(make, with_edits):
    case = make([*pages(1, 0), 0])
    case.programs[1].scale[:] = -1.7
    compare(only(case, with_edits, "score"))


@pytest.mark.parametrize("window", [65, 100, 128])
def test_a_window_cuts_a_whole_page(make, with_edits, window):
    compare(only(make([*pages(1, 2, 0, 1), 1]), with_edits, "mass", "score"), window=window)


def test_more_pages_than_bits(make, with_edits):
    """Two classes and a page of a third behind the first 31 pages, one split, soft-capped."""
    tags = [*pages(*[0, 1] * 16, 2, 0), 0, 1]
    config = replace(CONFIG, max_splits=1, block_keys=64)
    case = only(make(tags), with_edits, "mass")
    compare(case, config=config, softcap=1.5)
    case.batch = replace(case.batch, control_rows=torch.zeros_like(case.batch.control_rows))
    case.tables[1].hides[:] = 0
    plain = run(case, config, case.plain(), window=2100)
    assert torch.equal(run(case, config, window=2100), plain)


def test_a_class_of_hidden_and_cut_keys_alone(make, with_edits):
    """Class 3 lies before the window, class 2 is hidden: neither has a key that is seen."""
    tags = pages(3, 0, NEVER_ATTEND, 1)
    tags[PAGE - 1] = 3
    case = only(make(tags, hide=True), with_edits, "mass")
    compare(case, window=3 * PAGE - 5)


def test_the_newest_key_may_change_its_class_in_the_layer(make, with_edits):
    """Words do not know it, whether its page is new, half full or full."""
    for context in (2 * PAGE + 1, 2 * PAGE + 9, 3 * PAGE):
        case = only(make(pages(0, 1, 1)[:context]), with_edits, "mass", "score")
        batch = replace(case.batch, derived={})
        page_classes(batch, LAYER)
        case.tables[1].tags[1, LAYER, context - 1] = 3
        case.batch = replace(case.batch, derived=batch.derived)
        scale = case.query.shape[-1] ** -0.5
        arguments = (case.key_cache, case.value_cache, case.batch, LAYER, scale)
        found = kernel.decode(case.query, *arguments, config=CONFIG)
        assert torch.equal(found, run(case))
        compare(case)


def test_a_faint_class_in_half_precision(make, with_edits):
    """A class of whole pages 80 nats below the other, which gets half of all mass."""
    case = make([*pages(0, 1, 1), 0], dtype=torch.float16, classes=2)
    program = case.programs[1]
    program.bias[..., 1], program.scale[:] = -80, 0
    program.transform[..., 0, 0], program.transform[..., 1, 0] = 0.5, 0.5
    program.transform[..., 0, 1], program.transform[..., 1, 1] = 0, 1
    program.gate_threshold[:] = float("-inf")
    program.scale[:], program.absolute[:], program.weight[:] = 0, 0, 0
    case.write(1, program)
    compare(case, 4e-3)


def test_partials_of_classes_that_are_not_there_are_not_read(make, with_edits, monkeypatch):
    """All written but their maximum is NaN."""
    case = only(make([*pages(0, 1), 0]), with_edits, "mass")
    seen = {}
    monkeypatch.setattr(kernel, "merge", lambda arguments, *_: seen.update(arguments))
    run(case)
    there = torch.tensor([True, True, *[False] * 6])
    assert torch.equal(seen["part_max"][0, :, 0] > -torch.inf, there.expand(2, 8))
    assert torch.equal(seen["part_max"][0, :, 0] == -torch.inf, ~there.expand(2, 8))
    assert seen["part_out"][0, :, 0][:, ~there].isnan().all()
    assert not seen["part_out"][0, :, 0][:, there].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_plain_row_beside_others_has_the_bits_of_a_plain_batch(make_case, dtype):
    """Its tags do not matter; its neighbour edits, and is of another length."""
    sizes = {"queries": (1, 1), "contexts": (200, 70), "heads": 2, "kv_heads": 1}
    case = make_case(**sizes, dtype=dtype)
    caches = (case.key_cache, case.value_cache, case.batch.slots)
    reference.store(case.new(case.keys), case.new(case.values), *caches)
    case.batch.control_rows[:] = torch.tensor([0, 1])
    for options in ({}, {"window": 100}):
        beside, plain = run(case, **options), run(case, batch=case.plain(), **options)
        assert torch.equal(beside[0], plain[0])
        assert not torch.equal(beside[1], plain[1])


def test_programs_share_splits(make_case, monkeypatch):
    """Fewer programs than splits: each takes several, and the bits are the same."""
    case = make_case(queries=(1,), contexts=(330,), heads=1, kv_heads=1, dtype=torch.float32)
    caches = (case.key_cache, case.value_cache, case.batch.slots)
    reference.store(case.new(case.keys), case.new(case.values), *caches)
    config = replace(CONFIG, split=64, max_splits=8)
    one_each = run(case, config)
    monkeypatch.setattr(type(kernel.running()), "slots", lambda device, blocks: 1)
    assert torch.equal(run(case, config), one_each)
