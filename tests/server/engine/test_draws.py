"""Draws of padded decodes are the draws of ordinary steps, and only what must leaves the graphs."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saccade_server.engine.chunk import Chunk
from saccade_server.engine.decode import PaddedDecoder, Variant
from saccade_server.engine.draws import draw_stages
from saccade_server.engine.inputs import DecodeInputs
from saccade_server.engine.logprobs import Logprobs, queue_logprobs
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.sampler import Sample, draw
from saccade_server.engine.seats import Seats
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Stages, StageVariant, StepRows
from saccade_server.engine.transfer import Uploader
from saccade_testing import tiny
from saccade_testing.engine import core_with, make_request, run

SIZE, MOST = 70, 12
CPU = torch.device("cpu")
AS_ON_A_GPU = {"overlap": True, "padded_decode": True}

KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 4},
    {"temperature": 1.1, "top_p": 0.7, "seed": 5},
    {"temperature": 1.3, "top_k": 4, "min_p": 0.01, "seed": 2**64 - 3, "logprobs": 2},
    {"temperature": 1e-6, "top_k": 3},
    {"temperature": 2.0, "seed": -1, "logprobs": 0},
    {"temperature": 0.5, "min_p": 0.2, "seed": 4},
    {"temperature": 0.0, "logprobs": 3},
]


def decoding(output: int, **sampling: Any) -> Sequence:
    """A sequence whose last token, of ``output``, runs next."""
    p = SamplingParams(max_tokens=500, **sampling)
    made = Sequence(GenerateRequest(request_id="r", tokens=(1, 2, 3), sampling=p))
    for _ in range(output):
        made.append(5)
    made.pages, made.computed = list(range(1, 20)), made.length - 1
    return made


class Stand:
    """Padded draws alone, on memory full of garbage."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.logits = torch.full((MOST + 1, SIZE), float("nan"), dtype=dtype)
        self.seats = Seats(MOST, 20, lambda sequence: pytest.fail("no position is asked for"))
        tape: Any = SimpleNamespace(residuals=torch.empty(0))
        self.outputs = StepOutputs(self.logits, tape)
        self.outputs.bind(torch.randint(0, 256, (self.outputs.size,), dtype=torch.uint8))
        self.stages = Stages(draw_stages(self.outputs, self.seats, (1, 2, 4, 8, MOST)))
        self.inputs = torch.randint(0, 256, (self.stages.size,), dtype=torch.uint8)
        self.stages.bind(self.inputs)

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[Sample | None]:
        """As a step draws: what is greedy with the step, the others behind it."""
        chunks = [Chunk.of(sequence, 1) for sequence in sequences]
        self.seats.positions = lambda sequence: type("", (), {"delta": 0})
        roster = self.seats.roster(chunks)
        self.logits[: len(logits)] = logits
        at = np.array([sequence.generated for sequence in sequences])
        rows = StepRows(roster, at - 1 + roster.prompt_lengths, DecodeInputs.empty(MOST, 1, 1))
        played = self.stages.write(self.inputs.numpy(), rows, behind=True)
        self.outputs.greedy(min(size for size in (1, 2, 4, 8, MOST) if size >= len(logits)))
        for variant in played:
            self.stages.compute(variant)
        self.tokens = self.outputs.news.tokens[: len(logits)].clone()
        self.padding = int(self.outputs.news.tokens[MOST])
        params = [sequence.request.sampling for sequence in sequences]
        logprobs = queue_logprobs(logits, params, self.tokens, Uploader(CPU))
        taken = self.outputs.take(len(logits), logprobs)
        self.outputs.news.tokens.fill_(1 << 40)  # the next step's, before anybody waits
        return taken.wait()


def ordinary(logits: torch.Tensor, sequences: list[Sequence]) -> list[Sample | None]:
    positions = [sequence.generated for sequence in sequences]
    return draw(logits, sequences, positions, Uploader(CPU)).wait()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 12])
def test_every_row_draws_what_it_draws_in_an_ordinary_step(rows: int, dtype: torch.dtype) -> None:
    """Bit for bit, in batches of every mix; 300 positions are more than are foreseen at once."""
    stand, generator = Stand(dtype), torch.Generator().manual_seed(rows)
    for output in (1, 2, 40, 63, 64, 65, 127, 128, 129, 300, 7):
        picked = torch.randint(len(KINDS), (rows,), generator=generator).tolist()
        sequences = [decoding(output + i, **KINDS[kind]) for i, kind in enumerate(picked)]
        logits = torch.randn(rows, SIZE, generator=generator, dtype=dtype) * 3
        assert stand.sample(logits, sequences) == ordinary(logits, sequences)


def test_padding_draws_the_first_token_whatever_the_memory_held() -> None:
    """For one place of the buffer, whose logits are nobody's."""
    for kind in (1, 2):
        stand = Stand()
        stand.logits[MOST] = 0.0
        stand.inputs.fill_(0x55)  # places that are none, and numbers near 1e103
        some = [decoding(1, **KINDS[kind])] * 3
        stand.sample(torch.zeros(3, SIZE), some)
        assert stand.padding == 0


def test_one_sequence_draws_the_same_numbers_all_along() -> None:
    """Its seat keeps some ahead; it goes back after preemption has had it draw again."""
    stand, sequence = Stand(), decoding(1, temperature=1.5, seed=9)
    logits = torch.randn(1, SIZE, generator=torch.Generator().manual_seed(0))
    for output in (*range(1, 200), 60, 61, 3):
        again = decoding(output, temperature=1.5, seed=9)
        sequence.tokens, sequence.computed = again.tokens, again.computed
        assert stand.sample(logits, [sequence]) == ordinary(logits, [again])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_give_no_token_and_spare_the_others(bad: float) -> None:
    stand = Stand()
    logits = torch.randn(len(KINDS), SIZE, generator=torch.Generator().manual_seed(2))
    sequences = [decoding(3, **kind) for kind in KINDS]
    wanted = ordinary(logits, sequences)
    for row in range(len(KINDS)):
        broken = logits.clone()
        broken[row, 11] = bad
        found = stand.sample(broken, sequences)
        assert found[row] is None
        assert found[:row] + found[row + 1 :] == wanted[:row] + wanted[row + 1 :]
        # The next step embeds what the device drew before anybody knows that it is nothing.
        assert bool(((stand.tokens >= 0) & (stand.tokens < SIZE)).all())


def test_equal_logits_give_the_lowest_token() -> None:
    logits = torch.zeros(2, SIZE)
    logits[1, [9, 30, 69]] = 4.0
    sequences = [decoding(1, temperature=0.0)] * 2
    tokens = [sample.token for sample in Stand().sample(logits, sequences) if sample]
    assert tokens == [0, 9] == logits.argmax(-1).tolist()


def test_numbers_out_of_reach_of_float32_s_sum_are_finite() -> None:
    """Highest and lowest are looked at one by one: their difference would overflow."""
    logits = torch.zeros(1, SIZE)
    logits[0, 3], logits[0, 4] = 3e38, -3e38
    found = Stand().sample(logits, [decoding(1, temperature=0.0)])
    assert found == [Sample(3, None)]


def test_a_drawing_without_logprobs_reads_none() -> None:
    stand = Stand()
    stand.logits[:1] = 0.0
    stand.outputs.greedy(1)
    assert stand.outputs.take(1, Logprobs((), [])).wait() == [Sample(0, None)]


class Recorder:
    """Stands for CUDA graphs, and notes what is replayed."""

    def __init__(self, decoder: PaddedDecoder) -> None:
        self.played: list[Variant] = []
        self._decoder = decoder

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        (variant,) = run.args  # type: ignore[attr-defined]

        def replay() -> None:
            self.played.append(variant)
            run()

        return replay

    def used(self) -> int:
        return 0


def captured(core: Any) -> Recorder:
    recorder = Recorder(core._runner._decoder)
    core._runner.capture(recorder)
    return recorder


@pytest.mark.parametrize(
    ("kinds", "draws"),
    [
        ([0, 0, 0], set()),
        ([0, 1, 5], {("free draw", 2)}),
        ([2, 3, 6], {("filtered draw", 4)}),
        ([0, 1, 2, 4], {("free draw", 1), ("filtered draw", 1)}),
    ],
)
def test_only_rows_that_sample_are_drawn_behind_the_step(
    kinds: list[int], draws: set[Variant]
) -> None:
    core = core_with("llama", **AS_ON_A_GPU)
    recorder = captured(core)
    prompt = tiny.prompt("llama", text=9)
    requests = [
        make_request(prompt, str(i), None, 5, ignore_eos=True, **KINDS[kind])
        for i, kind in enumerate(kinds)
    ]
    found = run(core, requests)
    assert {variant for variant in recorder.played if isinstance(variant, StageVariant)} == draws
    wanted = run(core_with("llama"), requests)
    assert {n: r.tokens for n, r in found.items()} == {n: r.tokens for n, r in wanted.items()}


CHANGED: list[dict[str, Any]] = [
    {"logit_bias": {7: 2.0}},
    {"presence_penalty": 0.5},
    {"min_tokens": 4, "stop_token_ids": (5, 6)},
    {"forced": (3, 4, 5)},
]


@pytest.mark.parametrize("kind", range(len(CHANGED)))
def test_a_step_beside_changed_logits_draws_the_same_tokens(kind: int) -> None:
    """One request that needs ordinary draws, for a while or all along, beside every other kind."""
    core = core_with("llama", **AS_ON_A_GPU)
    recorder = captured(core)
    prompts = [tiny.prompt("llama", seed=i, text=5 + 9 * i) for i in range(5)]
    own = {"temperature": 0.8, "seed": 3, **CHANGED[kind]}
    requests = [make_request(prompts[4], "changed", None, 12, ignore_eos=True, **own)]
    requests += [
        make_request(prompts[i], str(i), None, 12, ignore_eos=True, **KINDS[i]) for i in range(4)
    ]
    found = run(core, requests)
    wanted = run(core_with("llama"), requests)
    for name, result in found.items():
        assert result.tokens == wanted[name].tokens, name
        tops = [[token for token, _ in some.top] for some in result.logprobs]
        assert tops == [[token for token, _ in some.top] for some in wanted[name].logprobs]
    # Penalties skip every second step; min_tokens and forced tokens are for the first tokens only.
    some = [variant for variant in recorder.played if isinstance(variant, StageVariant)]
    assert bool(some) == ("logit_bias" not in CHANGED[kind])
