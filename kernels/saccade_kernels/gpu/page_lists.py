"""A prompt's keys by class, for prefill kernels that take one class after another.

Of each sequence and class, made on the device from one layer's tags in one launch:

* *whole* pages: all keys of such a page are of the class. A tile of them needs no tags, no masks;
* *loose* keys: those of the class on any other page;
* *every* key of the class, for tiles that cannot take whole pages as such.

Keys are listed by their slots in the cache, ascending, and gathered a tile at a time, so a page of
many classes is not visited once for each. For every page the lists say how much of them lies before
it, and for every position how many keys of the class lie up to it: a kernel takes what is final for
all its rows as a whole, and of the keys behind that a row sees those with smaller numbers than its
own position has. So nothing depends on tags behind a row. Keys tagged NEVER_ATTEND are in no list.

    tags, a page of 4        0 0 0 0 | 0 1 0 - | 0 0 0 0 | 1 1 1 (to come)
    class 0: whole           0                   2
             loose                     4   6
             keys before     0         4         6         10  10
             whole before    0         1         1         2   2
             up to           1 2 3 4   5 5 6 6   7 8 9 10  10 10 10
    class 1: loose                       5                 12 13 14

One program takes one class of one sequence, PAGES pages (a tile PAGES x PAGE of tags) at a time.
It reads every tag once and writes 4 bytes a position and 8 to 12 a key of its class: at 16k keys
and 4 classes 64 KiB read and 0.4 MiB written a layer, nothing beside the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from saccade_kernels.batch import PAGE as PAGE_SLOTS
from saccade_kernels.batch import AttentionBatch
from saccade_kernels.gpu.arguments import Variant
from saccade_kernels.gpu.tiles import NEVER_ATTEND, PAGE

PAGES = 16
WARPS = 4


@dataclass(frozen=True)
class PageLists:
    """Lists of n sequences and C classes, int32; P pages hold the longest of the sequences.

    What lies behind the end of a list is anything.
    """

    whole: torch.Tensor  # [n, C, P]: page of the cache of each whole page
    keys: torch.Tensor  # [n, C, LISTS, P * PAGE]
    before: torch.Tensor  # [n, C, 2, P + 1]: keys, and whole pages, before each page

    @classmethod
    def allocate(
        cls, sequences: int, classes: int, longest: int, device: torch.device
    ) -> PageLists:
        """Room for sequences of up to ``longest`` keys."""
        pages = max(-(-longest // PAGE_SLOTS), 1)
        sizes = ((pages,), (LISTS, pages * PAGE_SLOTS), (2, pages + 1))
        whole, keys, before = (
            torch.empty(sequences, classes, *size, dtype=torch.int32, device=device)
            for size in sizes
        )
        return cls(whole, keys, before)


LISTS = 4
"""Slots of every key, their positions, slots of loose keys; and how many keys lie up to a position,
itself included."""


UNSPECIALISED = ["first", "layer", "layers", "max_len", "stride_pages", "classes", "max_pages"]
"""Integers whose value must not choose another compiled kernel while serving."""

UNALIGNED = ["context_lens", "page_table", "tag_rows"]
"""Tensors that may be views into others; nor must their alignment."""


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def list_kernel(
    tags,
    context_lens,
    page_table,
    tag_rows,
    whole,
    keys,
    before,
    first,
    layer,
    layers,
    max_len,
    stride_pages,
    classes,
    max_pages,
    PAGES: tl.constexpr,
):
    """The lists of one class of one sequence, of those from ``first`` on. Grid (C, sequences)."""
    own_class = tl.program_id(0)
    sequence = first + tl.program_id(1)
    entry = tl.program_id(1).to(tl.int64) * classes + own_class
    context = tl.minimum(tl.load(context_lens + sequence), max_pages * PAGE)
    pages = tl.cdiv(context, PAGE)
    tags_at = tags + (tl.load(tag_rows + sequence).to(tl.int64) * layers + layer) * max_len
    pages_at = page_table + sequence.to(tl.int64) * stride_pages
    whole_at = whole + entry * max_pages
    before_at = before + entry * 2 * (max_pages + 1)
    room = max_pages * PAGE
    every_at = keys + entry * 4 * room
    offset = tl.arange(0, PAGE)
    listed, listed_whole = 0, 0
    for start in tl.range(0, pages + 1, PAGES):  # one more: the counts before the end
        page = start + tl.arange(0, PAGES)
        position = page[:, None] * PAGE + offset[None, :]
        inside = position < context
        tag = tl.load(tags_at + position, mask=inside, other=NEVER_ATTEND).to(tl.int32)
        own = (tag == own_class).to(tl.int32)
        count = tl.sum(own, 1)
        is_whole = (count == PAGE).to(tl.int32)
        keys_so_far = listed + tl.cumsum(count, 0) - count
        whole_so_far = listed_whole + tl.cumsum(is_whole, 0) - is_whole
        tl.store(before_at + page, keys_so_far, mask=page <= pages)
        tl.store(before_at + max_pages + 1 + page, whole_so_far, mask=page <= pages)
        physical = tl.load(pages_at + page, mask=page < pages, other=0)
        tl.store(whole_at + whole_so_far, physical, mask=is_whole != 0)
        slot = physical[:, None] * PAGE + offset[None, :]
        up_to = keys_so_far[:, None] + tl.cumsum(own, 1)
        tl.store(every_at + 3 * room + position, up_to, mask=inside)
        place = every_at + up_to - 1
        tl.store(place, slot, mask=own != 0)
        tl.store(place + room, position, mask=own != 0)
        loose = (own != 0) & (is_whole == 0)[:, None]
        tl.store(place + 2 * room - PAGE * whole_so_far[:, None], slot, mask=loose)
        listed += tl.sum(count, 0)
        listed_whole += tl.sum(is_whole, 0)


def list_pages(batch: AttentionBatch, layer: int) -> PageLists:
    """The lists of the batch's prefills by one layer's tags, as they are now.

    All layers of a step write into the same memory: a list holds until the next layer's is made.
    """
    name = "page lists"
    if name not in batch.derived:
        longest = max((prefill.context for prefill in batch.prefills), default=0)
        sizes = (len(batch.prefills), batch.classes, longest)
        batch.derived[name] = PageLists.allocate(*sizes, batch.page_table.device)
    lists = batch.derived[name]
    assert isinstance(lists, PageLists)
    fill(lists, batch, layer, batch.num_decodes)
    return lists


def fill(lists: PageLists, batch: AttentionBatch, layer: int, first: int) -> None:
    """Write the lists of as many sequences as they have room for, from ``first`` on."""
    tags = batch.tables()[1].tags
    sequences, classes, max_pages = lists.whole.shape
    list_kernel[(classes, sequences)](
        tags,
        batch.context_lens,
        batch.page_table,
        batch.tag_rows,
        lists.whole,
        lists.keys,
        lists.before,
        first,
        layer,
        *tags.shape[1:],
        batch.page_table.stride(0),
        classes,
        max_pages,
        PAGES=PAGES,
        num_warps=WARPS,
    )


def variants() -> Iterator[Variant]:
    """The one form: nothing of a model's shape is fixed."""
    types: dict[str, str | None] = dict.fromkeys(UNALIGNED, "*i32")
    types |= dict.fromkeys(("whole", "keys", "before"), "*i32") | {"tags": "*u8"}
    types |= dict.fromkeys(UNSPECIALISED, "i32")
    yield "page-lists", list_kernel, types, {"PAGES": PAGES}, WARPS, 3
