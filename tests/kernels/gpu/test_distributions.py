"""The Triton contrast, divergences and masks, in the interpreter, against the reference."""

import pytest
import torch

from saccade_kernels import distributions, ops
from saccade_kernels.gpu import backend
from saccade_kernels.gpu import distributions as kernel

# numpy's, of the interpreter: differences of two infinities are no token's.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that an output that nobody wrote shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.fixture(autouse=True)
def few_parts(monkeypatch: pytest.MonkeyPatch):
    """A program takes the interpreter milliseconds; the number of them is no part of a kernel."""
    monkeypatch.setattr(kernel, "PARTS", 4)


def rows_of(count: int, width: int, seed: int, scale: float = 4.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) * scale


NUMBERS = torch.tensor(
    [[2.5, 1.5, -2.0], [1.0, 1.0, -torch.inf], [1.1, 0.1, -1.0], [1.0, 0.0, 0.0]],
    dtype=torch.float64,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [3, 97, 9001])
def test_contrast_equals_the_reference(width, dtype):
    """Rows among others in any order, one of them twice, one combined with itself."""
    logits = rows_of(7, width, 1).float()
    others = rows_of(5, width, 2).to(dtype)
    logits[1, 2] = -torch.inf  # a token that cannot be drawn
    own, other = torch.tensor([5, 1, 2, 5]), torch.tensor([4, 0, 0, 2])
    found = backend.contrast_rows(logits, own, others, other, NUMBERS)
    wanted = distributions.contrast_rows(logits.double(), own, others, other, NUMBERS)
    assert found.dtype == torch.float32
    assert torch.equal(found.isneginf(), wanted.isneginf())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5)
    found = backend.contrast_rows(logits, own, logits, own, NUMBERS)
    wanted = distributions.contrast_rows(logits.double(), own, logits.double(), own, NUMBERS)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [3, 97, 9001])
def test_divergences_equal_the_reference(width, dtype):
    logits, others = rows_of(6, width, 3).float(), rows_of(5, width, 4).to(dtype)
    others[3] = logits[4].to(dtype) + 2
    own, owners = torch.tensor([5, 0, 4]), torch.tensor([1, 0, 0, 2, 1])
    is_jsd = torch.tensor([True, False, True, False, False])
    found = backend.divergences(logits, own, others, owners, is_jsd)
    wanted = distributions.divergences(logits.double(), own, others, owners, is_jsd)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=1e-6 / width)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_spoils_its_rows_alone(bad):
    logits, others = rows_of(3, 70, 5).float(), rows_of(3, 70, 6).float()
    every, numbers = torch.arange(3), NUMBERS[[1, 1, 1]]
    logits[0, 69], others[1, 0] = bad, bad
    found = backend.contrast_rows(logits, every, others, every, numbers)
    assert found.isfinite().all(-1).tolist() == [False, False, True]
    assert not found[:2].isfinite().any()
    apart = backend.divergences(logits, every, others, every, torch.tensor([True] * 3))
    assert apart.isfinite().tolist() == [False, False, True]


def test_as_many_parts_as_are_shipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    logits, zero = rows_of(1, 1500, 8).float(), torch.zeros(1, dtype=torch.int64)
    assert kernel.PARTS == 32
    found = backend.contrast_rows(logits, zero, logits.flip(1), zero, NUMBERS[:1])
    wanted = distributions.contrast_rows(logits.double(), zero, logits.flip(1), zero, NUMBERS[:1])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5)


def test_an_excluded_token_far_below_all_others_is_found_in_its_part():
    """Parts may hold nothing but -inf."""
    logits = torch.full((1, 2000), -torch.inf)
    logits[0, [3, 1999]] = torch.tensor([1.0, 0.0])
    zero = torch.zeros(1, dtype=torch.int64)
    found = backend.contrast_rows(logits, zero, torch.zeros(1, 2000), zero, NUMBERS[1:2])
    wanted = distributions.contrast_rows(
        logits.double(), zero, torch.zeros(1, 2000), zero, NUMBERS[1:2]
    )
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-5)


def test_no_rows_and_double_precision():
    logits, none = rows_of(2, 40, 7), torch.zeros(0, dtype=torch.int64)
    flags = torch.zeros(0, dtype=torch.bool)
    for dtype in (torch.float32, torch.float64):
        given = logits.to(dtype)
        assert backend.contrast_rows(given, none, given, none, NUMBERS[:0]).shape == (0, 40)
        assert backend.divergences(given, none, given[:0], none, flags).shape == (0,)
    one = torch.tensor([1])
    for found, wanted in (
        (backend.contrast_rows, distributions.contrast_rows),
        (ops.contrast_rows, distributions.contrast_rows),
    ):
        given = (logits, one, logits, one * 0, NUMBERS[:1])
        assert torch.equal(found(*given), wanted(*given))


def masks_of(count: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens are allowed, bool [count, width], and the same as words with garbage behind."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(count, width, generator=generator) < 0.4
    words = torch.zeros(count, -(-width // 32), dtype=torch.int64)
    words[:, -1] = (0xA5A5A5A5 << (width % 32)) & 0xFFFFFFFF if width % 32 else 0
    for token in range(width):
        words[:, token // 32] |= allowed[:, token].long() << (token % 32)
    return allowed, words.to(torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [3, 32, 97, 9001])
def test_masks_take_away_what_they_do_not_allow_and_touch_nothing_else(width, dtype):
    """Rows in any order, masks shared by two of them; NaN and infinities stay what they are."""
    before = rows_of(7, width, 9).to(dtype)
    before[3, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    allowed, words = masks_of(5, width, 10)
    rows, which = torch.tensor([5, 3, 0, 6]), torch.tensor([4, 0, 2, 4])
    wanted = before.clone()
    for row, mask in zip(rows.tolist(), which.tolist(), strict=True):
        wanted[row] = torch.where(allowed[mask], before[row], -torch.inf)
    for masked in (backend.mask_rows, distributions.mask_rows, ops.mask_rows):
        found = before.clone()
        masked(found, rows, words, which)
        assert torch.equal(found.nan_to_num(7e9), wanted.nan_to_num(7e9))
        none = rows[:0]
        masked(found, none, words, none)
        assert torch.equal(found.nan_to_num(7e9), wanted.nan_to_num(7e9))


def test_contrast_of_masked_rows_goes_by_the_likeliest_allowed_token():
    """A mask on p's row excludes tokens and lowers the bar; on q's row it is another constant."""
    logits, other = rows_of(2, 97, 11), torch.tensor([1])
    (allowed,), words = masks_of(1, 97, 12)
    zero, number = torch.zeros(1, dtype=torch.int64), torch.tensor([[1.7, 0.7, -1.5]])
    p, q = logits.softmax(-1)
    kept = allowed & (p >= torch.exp(number[0, 2]) * p[allowed].max())
    assert 1 < kept.sum() < allowed.sum()
    d = (1.7 * p.log() - 0.7 * q.log()).masked_fill(~kept, -torch.inf).softmax(-1)
    for rows in ([0], [0, 1]):
        masked = logits.float()
        at = torch.tensor(rows)
        ops.mask_rows(masked, at, words, zero.expand(len(rows)))
        for contrast in (backend.contrast_rows, distributions.contrast_rows):
            found = contrast(masked, zero, masked, other, number.double())[0].double()
            torch.testing.assert_close(found.softmax(-1), d, rtol=1e-5, atol=1e-7)


@pytest.mark.gpu
def test_a_chip_masks_the_same_at_the_sizes_of_models():
    width = 151936
    logits, (allowed, words) = rows_of(9, width, 1).float().cuda(), masks_of(4, width, 2)
    rows, which = torch.tensor([8, 1, 5, 0]).cuda(), torch.tensor([3, 0, 0, 2]).cuda()
    wanted = logits.clone()
    wanted[rows] = torch.where(allowed.cuda()[which], logits[rows], -torch.inf)
    backend.mask_rows(logits, rows, words.cuda(), which)
    assert torch.equal(logits, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_chip_computes_the_same_at_the_sizes_of_models(dtype):
    with torch.device("cuda"):
        logits, others = rows_of(9, 152064, 1).float(), rows_of(64, 152064, 2).to(dtype)
        own, owners = torch.arange(8) + 1, torch.arange(64) // 8
        is_jsd = torch.arange(64) % 3 == 0
        found = backend.divergences(logits, own, others, owners, is_jsd)
        wanted = distributions.divergences(logits.double(), own, others, owners, is_jsd)
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=1e-11)
        numbers = NUMBERS.repeat(2, 1).cuda()
        found = backend.contrast_rows(logits, own, others, own, numbers)
        wanted = distributions.contrast_rows(logits.double(), own, others, own, numbers)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5)
