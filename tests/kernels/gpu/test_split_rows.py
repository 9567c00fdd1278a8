"""Which query rows are split over their keys, and where: the host's part of question rows."""

from dataclasses import replace

import pytest
import torch

from saccade_kernels.batch import PAGE, AttentionBatch, Prefill, Run
from saccade_kernels.controls import Edit
from saccade_kernels.gpu import split_rows
from saccade_kernels.gpu.blocks import cut, unsplit_rows
from saccade_kernels.gpu.split_rows import split_blocks, split_layer, waves
from saccade_kernels.gpu.tuning import SplitConfig

CONFIG = SplitConfig(
    block_m=64, num_warps=8, num_stages=3, split=256, max_splits=8, most_rows=256, least_keys=512
)
MASS = (Edit.NONE, Edit.MASS)


def batch_of(*prefills: Prefill, decodes: int = 1) -> AttentionBatch:
    """What the host knows of them; nothing is on a device."""
    none = torch.empty(0)
    fields = ("slots", "query_starts", "context_lens", "page_table", "control_rows", "tag_rows")
    tensors = dict.fromkeys(fields, none)
    return AttentionBatch(**tensors, num_decodes=decodes, max_context=0, prefills=prefills)


def question(rows: int, context: int, edits: tuple[Edit, ...] = MASS) -> AttentionBatch:
    """The last rows of a prompt, five more before them."""
    runs = (Run(5, 0), Run(rows, 1, edits, span=rows))
    return batch_of(Prefill(rows + 5, context, runs))


@pytest.mark.parametrize(
    ("rows", "span", "position", "edit", "before"),
    [
        (64, 64, 960, Edit.MASS, 0),
        (64, 64, 960, Edit.SCORE, 0),
        (64, 64, 960, Edit.HIDE, 0),
        (64, 64, 960, Edit.HEAD, 64),  # gains and shifts come behind attention
        (64, 0, 960, Edit.MASS, 64),  # a run that nobody knows the length of
        (64, 257, 960, Edit.MASS, 64),  # a long one, of which this is a part
        (2, 256, 960, Edit.MASS, 0),
        (64, 64, 500, Edit.MASS, 12),
        (64, 64, 0, Edit.MASS, 64),
    ],
)
def test_which_rows_are_split(rows: int, span: int, position: int, edit: Edit, before: int) -> None:
    made = Run(rows, 1, (Edit.NONE, edit), span)
    assert unsplit_rows(made, position, CONFIG) == before
    assert unsplit_rows(made, position, replace(CONFIG, most_rows=0)) == rows


@pytest.mark.parametrize(("rows", "context"), [(64, 1024), (200, 4111), (7, 2050), (30, 525)])
def test_every_row_is_in_one_block(rows: int, context: int) -> None:
    batch = question(rows, context)
    split = [one.block for one in split_blocks(batch, 0, CONFIG)]
    others = cut(batch.prefills, 1, 128, edited=True, aligned=True, split=CONFIG)
    assert all(sequence == 1 and control == 1 for sequence, _, _, _, control, _ in split + others)
    assert all(position >= 512 for _, _, _, position, _, _ in split)
    assert all(position + count <= 512 for _, _, count, position, _, _ in others)
    found = [row for _, first, count, *_ in split + others for row in range(first, first + count)]
    assert sorted(found) == list(range(5, rows + 5))


@pytest.mark.parametrize(("rows", "context"), [(64, 1024), (200, 4111), (7, 2050)])
def test_blocks_end_with_pages_and_splits_have_fixed_boundaries(rows: int, context: int) -> None:
    for one in split_blocks(question(rows, context), 0, CONFIG):
        position, count = one.block[3], one.block[2]
        assert position // PAGE == (position + count - 1) // PAGE
        assert (one.low, one.high) == (0, position // PAGE + 1)
        assert 1 <= one.splits <= 8 // -(-rows // PAGE)
        assert one.share >= 4


def test_a_window_begins_with_a_page() -> None:
    (one,) = split_blocks(question(3, 1100), 300, CONFIG)
    assert one.block[3] == 1097  # of the aligned 1088, whose first key is 789
    assert (one.low, one.high, one.share, one.splits) == (12, 18, 4, 2)


def test_partial_results_lie_apart() -> None:
    """Each of a row's splits has its own place, and all of a wave's places are taken."""
    batch = batch_of(*question(40, 700).prefills, *question(100, 2500).prefills, decodes=3)
    (wave,) = waves(batch, 0, 1, CONFIG, torch.device("cpu"))
    taken = []
    for sequence, first_row, count, _, _, _, begun, splits, split, low, high in wave.items.tolist():
        assert low < high
        taken += [(first_row + row, begun + row * splits + split) for row in range(count)]
        assert sequence in (3, 4)
    assert sorted(place for _, place in taken) == list(range(wave.splits))
    for token, _, control_row, hides, begun, splits in wave.rows.tolist():
        assert {place for row, place in taken if row == token} == set(range(begun, begun + splits))
        assert (control_row, hides) == (1, 0)


@pytest.mark.parametrize("most", [1, 100, 1000])
def test_waves_are_bounded(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(split_rows, "WAVE_BYTES", 10 * most)
    batch = question(200, 4111)
    made = waves(batch, 0, 10, CONFIG, torch.device("cpu"))
    assert sum(len(wave.rows) for wave in made) == 200
    for wave in made:
        blocks = {tuple(item[:2]) for item in wave.items.tolist()}
        assert len(blocks) == 1 or wave.splits <= most


def test_a_layer_without_such_edits_launches_nothing() -> None:
    batch = question(3, 1100, (Edit.MASS, Edit.HEAD))
    assert [split_layer(batch, layer, CONFIG) for layer in (0, 1)] == [True, False]
    assert not split_layer(batch, 0, replace(CONFIG, most_rows=2))
