"""Sampling against formulas written out, and independence of the rest of the batch."""

import math
from typing import Any

import pytest
import torch

from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.sampler import Sample
from saccade_server.engine.sampler import draw as start
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Uploader

SIZE = 50


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[Sample]:
    """Draw the next token of each sequence."""
    positions = [made.generated for made in sequences]
    return start(logits, sequences, positions, Uploader(torch.device("cpu"))).wait()


def sequence(prompt: tuple[int, ...] = (1,), output: tuple[int, ...] = (), **kw: Any) -> Sequence:
    sampling = SamplingParams(max_tokens=10, **kw)
    made = Sequence(GenerateRequest(request_id="r", tokens=prompt, sampling=sampling))
    for token in output:
        made.append(token)
    return made


def draw(logits: torch.Tensor, **kw: Any) -> int:
    return sample(logits[None], [sequence(**kw)])[0].token


def frequencies(logits: torch.Tensor, draws: int = 4000, **kw: Any) -> torch.Tensor:
    """Empirical distribution over seeds."""
    sequences = [sequence(seed=seed, **kw) for seed in range(draws)]
    samples = sample(logits.expand(draws, -1), sequences)
    tokens = torch.tensor([drawn.token for drawn in samples])
    return torch.bincount(tokens, minlength=logits.numel()) / draws


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(5)) * 2


def test_greedy_takes_the_largest_and_leaves_logits_alone(logits: torch.Tensor) -> None:
    before = logits.clone()
    bias = {int(logits.argmax()): -50.0}
    assert draw(logits, temperature=0.0) == int(logits.argmax())
    assert draw(logits, temperature=0.0, logit_bias=bias) == int(logits.topk(2).indices[1])
    assert torch.equal(logits, before)


def test_draws_follow_the_distribution(logits: torch.Tensor) -> None:
    found = frequencies(logits, temperature=1.7)
    wanted = (logits / 1.7).softmax(-1)
    assert float((found - wanted).abs().sum()) / 2 < 0.05


def test_top_k(logits: torch.Tensor) -> None:
    found = frequencies(logits, top_k=3, temperature=2.0)
    best = logits.topk(3).indices
    wanted = torch.zeros(SIZE)
    wanted[best] = (logits[best] / 2).softmax(-1)
    assert float((found - wanted).abs().max()) < 0.03
    assert float(found[wanted == 0].sum()) == 0


def test_top_p_keeps_the_token_that_crosses() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert frequencies(logits, top_p=0.5).nonzero().flatten().tolist() == [0]
    found = frequencies(logits, top_p=0.7)
    assert found.nonzero().flatten().tolist() == [0, 1]
    assert float(found[0]) == pytest.approx(0.625, abs=0.03)


def test_min_p_is_relative_to_the_best() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert frequencies(logits, min_p=0.4).nonzero().flatten().tolist() == [0, 1]


def test_penalties(logits: torch.Tensor) -> None:
    """Repetition counts prompt and output; presence and frequency the output only."""
    made = sequence(
        prompt=(3, 4),
        output=(7, 7, 9),
        temperature=0.0,
        repetition_penalty=1.5,
        presence_penalty=0.7,
        frequency_penalty=0.2,
    )
    for target in range(SIZE):
        # Whether a rival of known value wins tells the value the token had after penalties.
        rival = 20 if target != 20 else 21
        lifted = torch.full((SIZE,), -1e9)
        lifted[target], lifted[rival] = logits[target], 1e-3
        expected = target if _edited(float(logits[target]), target) > 1e-3 else rival
        assert sample(lifted[None], [made])[0].token == expected


def _edited(value: float, token: int) -> float:
    if token in (3, 4, 7, 9):
        value = value / 1.5 if value > 0 else value * 1.5
    return value - {7: 0.7 + 0.4, 9: 0.7 + 0.2}.get(token, 0.0)


def test_a_draw_depends_on_seed_and_position_only(logits: torch.Tensor) -> None:
    alone = [draw(logits, seed=11, output=(0,) * step) for step in range(20)]
    mixed = []
    for step in range(20):
        neighbours = [sequence(seed=s, temperature=0.3 + s) for s in range(3)]
        batch = [*neighbours, sequence(seed=11, output=(0,) * step), sequence(temperature=0.0)]
        mixed.append(sample(logits.expand(5, -1), batch)[3].token)
    assert alone == mixed
    assert len(set(alone)) > 3
    assert alone != [draw(logits, seed=12, output=(0,) * step) for step in range(20)]


def test_logprobs_are_the_models_own(logits: torch.Tensor) -> None:
    made = sequence(temperature=0.0, logprobs=3, logit_bias={4: 100.0})
    found = sample(logits[None], [made])[0].logprobs
    own = logits.log_softmax(-1)
    assert found is not None
    assert found.token == 4
    assert found.logprob == pytest.approx(float(own[4]))
    assert [token for token, _ in found.top] == logits.topk(3).indices.tolist()
    assert found.top[0][1] == pytest.approx(float(own.max()))
    assert math.isfinite(found.logprob)


def test_zero_alternatives_still_give_the_tokens_own(logits: torch.Tensor) -> None:
    found = sample(logits[None], [sequence(temperature=0.0, logprobs=0)])[0].logprobs
    assert found is not None
    assert found.top == ()


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1, -1])
def test_any_seed_works(seed: int, logits: torch.Tensor) -> None:
    assert 0 <= draw(logits, seed=seed) < SIZE


def test_extreme_parameters_still_draw(logits: torch.Tensor) -> None:
    assert draw(logits, temperature=1e-4) == int(logits.argmax())
    assert 0 <= draw(logits, temperature=1e4, top_p=1e-9) < SIZE
    assert draw(logits, min_p=1.0) == int(logits.argmax())
    assert draw(logits, top_k=10_000, temperature=1e-3) == int(logits.argmax())


KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 4},
    {"temperature": 1.1, "top_p": 0.7, "seed": 5},
    {"temperature": 1.3, "top_k": 4, "min_p": 0.01, "seed": 6, "logprobs": 2},
    {"temperature": 0.0, "repetition_penalty": 1.7, "logit_bias": {8: 1.0}, "logprobs": 4},
    {"temperature": 0.8, "presence_penalty": 1.0, "frequency_penalty": 0.5, "logprobs": 2},
]


def test_a_batch_of_all_kinds_gives_each_what_it_gets_alone() -> None:
    logits = torch.randn(2 * len(KINDS), SIZE, generator=torch.Generator().manual_seed(1)) * 2
    sequences = [sequence((3, 4), (7, 7, i), **kind) for i, kind in enumerate([*KINDS, *KINDS])]
    together = sample(logits, sequences)
    alone = [sample(row[None], [made])[0] for row, made in zip(logits, sequences, strict=True)]
    assert together == alone


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_give_no_token_and_spare_the_others(bad: float) -> None:
    logits = torch.randn(len(KINDS), SIZE, generator=torch.Generator().manual_seed(2))
    sequences = [sequence((3, 4), (7,), **kind) for kind in KINDS]
    wanted = sample(logits, sequences)
    for row in range(len(KINDS)):
        broken = logits.clone()
        broken[row, 11] = bad
        drawing = start(broken, sequences, [1] * len(KINDS), Uploader(torch.device("cpu")))
        found = drawing.wait()
        assert found[row] is None
        assert found[:row] + found[row + 1 :] == wanted[:row] + wanted[row + 1 :]
        # The next step embeds what the device drew before anybody knows that it is nothing.
        assert bool(((drawing.tokens >= 0) & (drawing.tokens < SIZE)).all())
