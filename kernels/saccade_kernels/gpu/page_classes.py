"""Which key classes each page of a decode's keys has: a word a page, made once a step.

    tags of a page, 64 bytes   0 0 0 0 ... 0 0   1 1 3 1 ... 1 1   255 0 0 ... 0 0   255 ... 255
    its word                   whole, class 0    classes 1, 3      class 0           nothing
    read for class 0           without a mask    not at all        masked            not at all

Bits 0 to 7 are the classes that some key has, bit 8 says that the page is *whole*: all its keys are
of one class. Keys that are never attended have none. A word is about the keys before the step's
own: the page that this key is in has none, because its tag may still change inside the layer.

Tiles: PAGES pages x 64 keys a round. Reads a byte a key and layer, where a decode reads 512 and
more for a key's values in one layer; writes two bytes a page. No products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import controls
from saccade_kernels.batch import PAGE as PAGE_SLOTS
from saccade_kernels.batch import AttentionBatch
from saccade_kernels.gpu.tiles import PAGE, WIDTH

WHOLE = tl.constexpr(1 << controls.CLASSES)
"""Bit of a page whose keys are all of one class, behind those of the classes."""

PAGES = 16
WARPS = 4
ENOUGH_PROGRAMS = 1024


@triton.jit(
    do_not_specialize=["layer", "layers", "max_len", "pages"],
    do_not_specialize_on_alignment=["tags", "context_lens", "tag_rows", "words"],
)
def page_classes_kernel(
    tags, context_lens, tag_rows, words, layer, layers, max_len, pages, PAGES: tl.constexpr
):
    """Words of one sequence in one layer. Grid (programs, layers from ``layer`` on, sequences).

    tags: uint8 [rows, layers, max_len]; words: int16 [sequences, layers, pages].
    """
    own_layer = layer + tl.program_id(1)
    sequence = tl.program_id(2)
    known = (tl.load(context_lens + sequence) - 1) // PAGE  # pages before the one being filled
    tag_row = tl.load(tag_rows + sequence).to(tl.int64)
    tags_at = tags + (tag_row * layers + own_layer) * max_len
    words_at = words + (sequence * layers + own_layer).to(tl.int64) * pages
    key = tl.arange(0, PAGE)
    step = tl.num_programs(0) * PAGES
    for first in tl.range(tl.program_id(0) * PAGES, known, step):
        page = first + tl.arange(0, PAGES)
        is_page = page < known
        tag_at = tags_at + page[:, None] * PAGE + key[None, :]
        tag = tl.load(tag_at, mask=is_page[:, None], other=0).to(tl.int32)
        word = tl.zeros([PAGES], tl.int32)
        for klass in tl.static_range(WIDTH):
            keys = tl.sum((tag == klass).to(tl.int32), 1)
            word |= (keys > 0).to(tl.int32) << klass
            word |= tl.where(keys == PAGE, WHOLE, 0)
        tl.store(words_at + page, word.to(tl.int16), mask=is_page)


def page_classes(batch: AttentionBatch, layer: int) -> torch.Tensor:
    """Words of the decodes' pages, int16 [num_decodes, layers, pages]; those of ``layer`` hold.

    Made for all layers at once when a step's first layer asks, and again in each layer if tags of
    earlier keys settle inside the layers.
    """
    name = "page classes"
    tags = batch.tables()[1].tags
    if name not in batch.derived:
        shape = (batch.num_decodes, tags.shape[1], -(-batch.max_context // PAGE_SLOTS))
        batch.derived[name] = torch.empty(shape, dtype=torch.int16, device=tags.device)
        if not batch.settles:
            _write(batch, batch.derived[name], 0, tags.shape[1])
    words = batch.derived[name]
    assert isinstance(words, torch.Tensor)
    if batch.settles:
        _write(batch, words, layer, 1)
    return words


def _write(batch: AttentionBatch, words: torch.Tensor, layer: int, count: int) -> None:
    """The words of ``count`` layers from ``layer`` on."""
    sequences, layers, pages = words.shape
    tags = batch.tables()[1].tags
    programs = min(-(-pages // PAGES), max(1, ENOUGH_PROGRAMS // (count * sequences)))
    page_classes_kernel[(programs, count, sequences)](
        tags,
        batch.context_lens,
        batch.tag_rows,
        words,
        layer,
        layers,
        tags.shape[2],
        pages,
        PAGES=PAGES,
        num_warps=WARPS,
    )
