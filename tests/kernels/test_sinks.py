"""Sink scores and the tags that follow from them."""

from dataclasses import fields

import pytest
import torch

from saccade_kernels.controls import CLASSES
from saccade_kernels.gpu.sinks import TAG_BLOCK, settle_sink_tags, store_sink_scores
from saccade_kernels.sinks import RMS_EPSILON, SinkTags, settle_tags, sink_scores, store_scores

TAU = 20.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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
    assert sequence == sorted(sequence)
    count, sequences = len(sequence), len(remap)
    of = range(sequences + 1)
    return SinkTags(
        slots=torch.arange(count) * 3,
        position=torch.tensor([sequence[:i].count(s) for i, s in enumerate(sequence)]),
        starts=torch.tensor([sequence.index(s) if s in sequence else count for s in of]),
        base=torch.tensor(base),
        threshold=torch.full((sequences,), threshold),
        tag_row=torch.arange(sequences) + 1,
        remap=table,
        require=torch.tensor(require),
        whole=torch.full((sequences,), int(whole), dtype=torch.uint8),
    )


def write(tags: SinkTags, sinks: list[int], met: torch.Tensor | None = None) -> torch.Tensor:
    """The tag table [4, 6] after the positions in ``sinks`` scored the threshold.

    The kernel, by the interpreter, settles all of it as the reference does.
    """
    met = torch.zeros(4, dtype=torch.uint8) if met is None else met
    scores = torch.full((len(tags.base) * 3,), torch.nan)
    scores[tags.slots] = TAU - 0.5
    scores[tags.slots[sinks]] = TAU
    table = torch.full((4, 3, 6), 99, dtype=torch.uint8)[:, 1]
    settle_both(tags, scores, table, met)
    return table


def settle_both(
    tags: SinkTags, scores: torch.Tensor, table: torch.Tensor, met: torch.Tensor
) -> None:
    """By the reference, in place; the kernel must do the same."""
    moved = {field.name: getattr(tags, field.name).to(DEVICE) for field in fields(tags)}
    written, decided = (part.clone().to(DEVICE) for part in (table, met))
    settle_sink_tags(SinkTags(**moved), scores.to(DEVICE), written, decided)
    settle_tags(tags, scores, table, met)
    assert torch.equal(written.cpu(), table)
    assert torch.equal(decided.cpu(), met)


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


@pytest.mark.parametrize("size", [37, 64, 1152])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_triton_scores_as_the_reference_in_float64(dtype, size):
    """Of the rows asked for alone, and into their slots alone."""
    hidden = torch.full((9, size), torch.nan, dtype=dtype)
    rows, slots = torch.tensor([7, 2, 3]), torch.tensor([70, 3, 0])
    hidden[rows] = torch.randn(3, size).to(dtype)
    hidden[3, size - 1] = -60.0
    for dims in ([size - 1], [3, 0, size - 1], [5]):
        scores = torch.full((80,), torch.nan, device=DEVICE)
        given = [t.to(DEVICE) for t in (hidden, rows, torch.tensor(dims), slots)]
        store_sink_scores(*given, scores)
        wanted = torch.full((80,), torch.nan, dtype=torch.float64)
        store_scores(hidden.double(), rows, torch.tensor(dims), slots, wanted)
        torch.testing.assert_close(scores.cpu().double(), wanted, rtol=1e-5, atol=0, equal_nan=True)


def random_tags(lengths: list[int], seed: int) -> SinkTags:
    """Every third sequence is not whole; some require a class, and some of these have it."""
    drawn = torch.Generator().manual_seed(seed)
    sequences, count = len(lengths), sum(lengths)

    def draw(most: int, *size: int) -> torch.Tensor:
        return torch.randint(most, size, generator=drawn)

    position = [torch.randperm(2 * n, generator=drawn)[:n] for n in lengths]
    return SinkTags(
        slots=torch.randperm(2 * count, generator=drawn)[:count],
        position=torch.cat(position),
        starts=torch.tensor([0, *lengths]).cumsum(0),
        base=draw(4, count),
        threshold=torch.rand(sequences, generator=drawn),
        tag_row=torch.randperm(sequences + 3, generator=drawn)[:sequences],
        remap=draw(CLASSES, sequences, CLASSES),
        require=draw(9, sequences) - 1,
        whole=(torch.arange(sequences) % 3 > 0).to(torch.uint8),
    )


@pytest.mark.parametrize(
    "lengths", [[1], [5, 0, 70, 33, 0], [TAG_BLOCK + 9, 3, 2 * TAG_BLOCK]], ids=str
)
def test_triton_settles_as_the_reference(lengths):
    """Sequences of several blocks, and of none."""
    for seed in range(4):
        tags = random_tags(lengths, seed)
        scores = torch.full((2 * sum(lengths) + 1,), torch.nan)
        scores[tags.slots] = torch.rand(sum(lengths))
        rows, longest = len(lengths) + 3, 2 * max(lengths)
        table = torch.full((rows, 3, longest), 99, dtype=torch.uint8)
        settle_both(tags, scores, table[:, 1], torch.randint(2, (rows,)).to(torch.uint8))
        assert (table != 99).sum() == sum(lengths)


@pytest.mark.parametrize("place", [0, TAG_BLOCK, 2 * TAG_BLOCK + 4])
def test_one_key_of_a_long_prompt_meets_the_requirement_of_all(place):
    """In whichever block of the kernel it lies; the other sink has a class of its own."""
    count = 2 * TAG_BLOCK + 5
    base = [1] * count
    base[place] = 2
    tags = sink_tags([0] * count, base, [{1: 3, 2: 4}], [4])
    scores = torch.zeros(3 * count)
    scores[[3 * place, 3 * 77]] = TAU
    table = torch.zeros(2, count, dtype=torch.uint8)
    settle_both(tags, scores, table, torch.zeros(2, dtype=torch.uint8))
    assert table[1, [place, 77]].tolist() == [4, 3]


@pytest.mark.gpu
def test_a_chip_finds_the_same_sinks():
    test_triton_scores_as_the_reference_in_float64(torch.bfloat16, 3584)
    test_triton_settles_as_the_reference([TAG_BLOCK + 9, 3, 2 * TAG_BLOCK])
