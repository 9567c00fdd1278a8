"""Pages and keys by class, run by the interpreter, against lists made one key at a time."""

from dataclasses import replace

import pytest
import torch

from saccade_kernels.batch import PAGE
from saccade_kernels.controls import NEVER_ATTEND
from saccade_kernels.gpu.page_lists import PageLists, fill, list_pages

POISON = -7
LAYER = 1


@pytest.fixture
def make(make_case):
    """A batch of prefills behind ``decodes`` decodes, with tags of runs, strays and hidden keys."""

    def made(contexts, classes=4, decodes=0, mixed=False, hide=True):
        queries = (1,) * decodes + (2,) * len(contexts)
        case = make_case(queries, (9,) * decodes + contexts, heads=1, kv_heads=1)
        tags = case.tables[1].tags
        if not mixed:
            for row, context in enumerate(contexts, decodes + 1):
                runs = torch.arange(context) // 150 % classes
                strays = torch.randperm(context)[: context // 40]
                runs[strays] = torch.randint(0, classes, strays.shape)
                if hide:
                    runs[torch.randperm(context)[:2]] = NEVER_ATTEND
                tags[row, LAYER, :context] = runs.to(tags.dtype)
        return replace(case.batch, classes=classes, derived={})

    torch.manual_seed(0)
    return made


def poisoned(batch):
    """The batch's lists, and whatever else the memory held."""
    longest = max(prefill.context for prefill in batch.prefills)
    lists = PageLists.allocate(len(batch.prefills), batch.classes, longest, torch.device("cpu"))
    for tensor in (lists.whole, lists.keys, lists.before):
        tensor.fill_(POISON)
    fill(lists, batch, LAYER, batch.num_decodes)
    return lists


def check(batch):
    lists = poisoned(batch)
    assert lists.whole.shape[1] == batch.classes
    for index, prefill in enumerate(batch.prefills):
        sequence = batch.num_decodes + index
        row = int(batch.tag_rows[sequence])
        tags = batch.tables()[1].tags[row, LAYER, : prefill.context].tolist()
        pages = batch.page_table[sequence].tolist()
        for own in range(batch.classes):
            found = lists.whole[index, own], lists.keys[index, own], lists.before[index, own]
            check_class(*(tensor.tolist() for tensor in found), tags, pages, own)


def check_class(found_whole, found_keys, found_before, tags, pages, own):
    every = [n for n, tag in enumerate(tags) if tag == own]
    full = [p for p in range(len(tags) // PAGE) if set(tags[p * PAGE : (p + 1) * PAGE]) == {own}]
    loose = [n for n in every if n // PAGE not in full]
    assert found_whole[: len(full)] == [pages[p] for p in full]
    wanted_keys = (
        [pages[n // PAGE] * PAGE + n % PAGE for n in every],
        every,
        [pages[n // PAGE] * PAGE + n % PAGE for n in loose],
        torch.tensor(tags).eq(own).cumsum(0).tolist(),
    )
    for found, wanted in zip(found_keys, wanted_keys, strict=True):
        assert found[: len(wanted)] == wanted
        assert set(found[len(wanted) :]) <= {POISON}  # nothing is written behind the end
    ends = range(-(-len(tags) // PAGE) + 1)
    assert found_before[0][: len(ends)] == [sum(n < p * PAGE for n in every) for p in ends]
    assert found_before[1][: len(ends)] == [sum(f < p for f in full) for p in ends]
    assert set(found_whole[len(full) :]) <= {POISON}
    for counts in found_before:
        assert set(counts[len(ends) :]) <= {POISON}


@pytest.mark.parametrize("mixed", [False, True], ids=["runs", "all-mixed"])
@pytest.mark.parametrize("decodes", [0, 2])
def test_lists_of_several_sequences(make, decodes, mixed):
    check(make((700, 2, 64, 130), decodes=decodes, mixed=mixed))


@pytest.mark.parametrize("context", [63, 64, 65, 16 * PAGE, 16 * PAGE + 1, 33 * PAGE])
def test_lengths_around_pages_and_around_what_a_program_takes_at_once(make, context):
    check(make((context,), classes=2))


def test_one_class_alone(make):
    check(make((1000,), classes=1, hide=False))


def test_hidden_keys_are_in_no_list(make):
    batch = make((200,), hide=False)
    batch.tables()[1].tags[1, LAYER] = NEVER_ATTEND
    lists = poisoned(batch)
    assert (lists.whole == POISON).all()
    assert (lists.keys[:, :, :3] == POISON).all()
    assert (lists.keys[:, :, 3, :200] == 0).all()
    assert (lists.before == 0).all()


def test_what_lies_before_a_page_does_not_depend_on_tags_behind_it(make):
    batch = make((500,))
    before = poisoned(batch)
    batch.tables()[1].tags[1, LAYER, 4 * PAGE :] = 3
    after = poisoned(batch)
    assert torch.equal(before.before[..., :5], after.before[..., :5])
    assert torch.equal(before.keys[:, :, 3, : 4 * PAGE], after.keys[:, :, 3, : 4 * PAGE])
    assert not torch.equal(before.before, after.before)


def test_layers_share_memory_and_take_their_own_tags(make):
    batch = make((300,))
    tags = batch.tables()[1].tags
    tags[1, 0], tags[1, 1] = 0, 1
    first = list_pages(batch, 0)
    assert first.before[0, 0, 0, -1] == 300
    assert list_pages(batch, 1) is first
    assert first.before[0, :, 0, -1].tolist() == [0, 300, 0, 0]
