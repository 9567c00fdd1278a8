"""Sink scores and the tags that follow from them."""

import pytest
import torch

from saccade_kernels.controls import CLASSES
from saccade_kernels.sinks import RMS_EPSILON, SinkTags, sink_scores

TAU = 20.0


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_scores_are_the_largest_sink_dimension_over_rms(dtype):
    hidden = torch.randn(5, 48, dtype=torch.float64).to(dtype)
    hidden[2, 7] = -90.0
    scores = sink_scores(hidden, torch.tensor([3, 7]))
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for row, score in zip(hidden.double(), scores, strict=True):
        rms = (sum(float(x) ** 2 for x in row) / 48 + RMS_EPSILON) ** 0.5
        assert float(score) == pytest.approx(float(row[[3, 7]].abs().max()) / rms, rel=1e-5)
    assert int(scores.argmax()) == 2


def test_scores_stay_below_the_root_of_the_width():
    hidden = torch.zeros(2, 64)
    hidden[0, 5] = 1e6
    scores = sink_scores(hidden, torch.tensor([5]))
    assert scores[0] == pytest.approx(8.0)
    assert scores[1] == 0


def sink_tags(
    sequence: list[int],
    base: list[int],
    remap: list[dict[int, int]],
    require: list[int],
    threshold: float = TAU,
    whole: bool = True,
) -> SinkTags:
    """Position, slot and tag row follow from the place in the list."""
    table = torch.arange(CLASSES).repeat(len(remap), 1)
    for row, pairs in enumerate(remap):
        for old, new in pairs.items():
            table[row, old] = new
    count, sequences = len(sequence), len(remap)
    return SinkTags(
        slots=torch.arange(count) * 3,
        position=torch.tensor([sequence[:i].count(s) for i, s in enumerate(sequence)]),
        sequence=torch.tensor(sequence),
        base=torch.tensor(base),
        threshold=torch.full((sequences,), threshold),
        tag_row=torch.arange(sequences) + 1,
        remap=table,
        require=torch.tensor(require),
        whole=torch.full((sequences,), int(whole), dtype=torch.uint8),
    )


def write(tags: SinkTags, sinks: list[int], met: torch.Tensor | None = None) -> torch.Tensor:
    """The tag table [4, 6] after the positions in ``sinks`` scored the threshold."""
    met = torch.zeros(4, dtype=torch.uint8) if met is None else met
    scores = torch.full((len(tags.base) * 3,), torch.nan)
    scores[tags.slots] = TAU - 0.5
    scores[tags.slots[sinks]] = TAU
    table = torch.full((4, 6), 99, dtype=torch.uint8)
    tags.write(scores, table, met)
    return table


def test_sinks_change_class_and_others_keep_theirs():
    tags = sink_tags([0] * 4, [0, 1, 1, 2], [{0: 3, 1: 4}], [-1])
    table = write(tags, [0, 2, 3])
    assert table[1, :4].tolist() == [3, 1, 4, 2]


def test_only_the_positions_named_are_written():
    table = write(sink_tags([0, 0], [0, 1], [{}], [-1]), [])
    assert int((table != 99).sum()) == 2


def test_each_sequence_has_its_own_rules():
    tags = sink_tags([0, 0, 1, 1, 2], [1, 1, 1, 1, 1], [{1: 2}, {1: 3}, {}], [-1] * 3)
    table = write(tags, [0, 3, 4])
    assert table[1, :2].tolist() == [2, 1]
    assert table[2, :2].tolist() == [1, 3]
    assert table[3, 0] == 1


def test_thresholds_are_per_sequence():
    tags = sink_tags([0, 1], [1, 1], [{1: 2}, {1: 2}], [-1, -1])
    tags.threshold[1] = TAU + 0.1
    assert write(tags, [0, 1])[1:3, 0].tolist() == [2, 1]


def test_a_sequence_without_the_required_class_keeps_its_base():
    rules = [{0: 2, 1: 3}, {0: 2, 1: 3}]
    tags = sink_tags([0, 0, 1, 1], [0, 1, 0, 1], rules, [3, 3])
    table = write(tags, [0, 2, 3])  # sequence 0 has a sink of class 2, but none of class 3
    assert table[1, :2].tolist() == [0, 1]
    assert table[2, :2].tolist() == [2, 3]


def test_the_required_class_may_be_there_without_a_sink():
    table = write(sink_tags([0, 0], [3, 0], [{0: 2}], [3]), [1])
    assert table[1, :2].tolist() == [3, 2]


def test_whether_the_requirement_is_met_is_kept():
    rules = [{0: 2, 1: 3}, {0: 2, 1: 3}, {0: 2}]
    tags = sink_tags([0, 0, 1, 1, 2], [0, 1, 0, 1, 0], rules, [3, 3, -1])
    met = torch.tensor([7, 1, 0, 0], dtype=torch.uint8)
    write(tags, [0, 2, 3], met)
    assert met.tolist() == [7, 0, 1, 1]


@pytest.mark.parametrize(("met", "tagged"), [(0, [0, 0]), (1, [2, 0])])
def test_new_positions_follow_what_was_decided_before(met, tagged):
    """Class 3 is required and none of these positions has it."""
    tags = sink_tags([0, 0], [0, 0], [{0: 2, 1: 3}], [3], whole=False)
    kept = torch.tensor([0, met, 0, 0], dtype=torch.uint8)
    assert write(tags, [0], kept)[1, :2].tolist() == tagged
    assert kept.tolist() == [0, met, 0, 0]
