"""Contrast and early exits behind a padded step, against their formulas in float64."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.methods.dola import DoLa
from saccade_interventions.methods.pai_contrast import PAIContrast
from saccade_interventions.methods.vcd import VCD
from saccade_interventions.rules import Branch, ContrastRule, EarlyExit
from saccade_kernels.controls import ControlShape
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.groups import form
from saccade_server.engine.inputs import DecodeInputs
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.request import BranchInput, GenerateRequest, SamplingParams
from saccade_server.engine.rules import early_stage
from saccade_server.engine.rules.contrast_stage import ContrastStage
from saccade_server.engine.rules.early_stage import EarlyStage
from saccade_server.engine.seats import Seats
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Stages, StageVariant, StepRows
from saccade_server.models.base import ServedModel
from saccade_server.models.family import serve
from saccade_testing import tiny
from saccade_testing.engine import ask, core_with, run

LAYERS, MOST = 4, 12

WITH_BRANCH = [
    ContrastRule(own=2.5, other=1.5, cutoff=0.05, branch=Branch("same")),
    ContrastRule(own=1.1, other=0.1, cutoff=0.0, branch=Branch("same")),
]
EARLY = [
    ContrastRule(own=1.0, other=1.0, cutoff=0.1, early=EarlyExit((0, 2, 3), True, "jsd")),
    ContrastRule(own=1.0, other=1.0, cutoff=0.3, early=EarlyExit((1,), False, "dola")),
    ContrastRule(own=1.0, other=0.7, cutoff=0.0, early=EarlyExit((3, 1, 0, 2), False, "dola")),
    ContrastRule(own=1.0, other=1.0, cutoff=0.1, early=EarlyExit((2, 3), False, "jsd")),
]


@pytest.fixture
def model() -> ServedModel:
    return serve(tiny.build("llama"))


def group(rule: ContrastRule | None) -> list[Sequence]:
    """A decoding leader, and its branch if the rule has one."""
    plan, branches = None, ()
    if rule is not None:
        builder = PlanBuilder(ControlShape(LAYERS, 4, 16), 3, 0)
        builder.rule(rule)
        plan = builder.build()
        branches = (BranchInput(tokens=(4, 5)),) if rule.branch else ()
    sampling = SamplingParams(max_tokens=9)
    request = GenerateRequest(
        request_id="r", tokens=(1, 2, 3), sampling=sampling, plan=plan, branches=branches
    )
    leader = form(request)
    for member in leader.group:
        member.append(7)
        member.pages, member.computed = [1], member.length - 1
    return list(leader.group)


class Stand:
    """Both stages behind a step of some sequences, on memory full of garbage."""

    def __init__(self, model: ServedModel, sequences: list[Sequence], seed: int = 0) -> None:
        self.model, self.sequences = model, sequences
        generator = torch.Generator().manual_seed(seed)
        shape = (MOST + 1, model.vocab_size)
        self.logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
        self.residuals = torch.randn(
            (LAYERS, MOST + 1, model.hidden_size), generator=generator, dtype=torch.float64
        )
        self.before = self.logits.clone()
        tape: Any = SimpleNamespace(residuals=self.residuals)
        self.outputs = StepOutputs(self.logits, tape)
        self.outputs.bind(torch.randint(0, 256, (self.outputs.size,), dtype=torch.uint8))
        self.stages = Stages([ContrastStage(self.outputs), EarlyStage(model, self.outputs)])
        self.memory = torch.randint(0, 256, (self.stages.size,), dtype=torch.uint8)
        self.stages.bind(self.memory)
        self.seats = Seats(MOST, 2, lambda sequence: type("", (), {"delta": 0}))

    def run(self) -> list[StageVariant]:
        roster = self.seats.roster([Chunk.of(sequence, 1) for sequence in self.sequences])
        starts = np.array([sequence.computed for sequence in self.sequences])
        rows = StepRows(roster, starts, DecodeInputs.empty(MOST, 1, 1))
        played = self.stages.write(self.memory.numpy(), rows, behind=True)
        self.outputs.greedy(len(self.sequences))
        for variant in played:
            self.stages.compute(variant)
        return played

    def usable(self) -> list[bool]:
        """Of each row, as the host sees it."""
        news, count = self.outputs.news, len(self.sequences)
        return (news.highest.isfinite() & news.lowest.isfinite())[:count].tolist()

    def wanted(self, row: int) -> torch.Tensor:
        """What the rule of a row makes of the step, written out; the row itself without one."""
        leader = self.sequences[row]
        plan = leader.plan if leader.leader is None else None
        if plan is None:
            return self.before[row]
        rule = plan.rule(ContrastRule)
        p = self.before[row].softmax(-1)
        if rule.early is None:
            q = self.before[self.sequences.index(leader.branches[0])].softmax(-1)
        else:
            q = self.exit(row, p, rule.early)
        d = rule.own * p.log() - rule.other * q.log()
        return d.masked_fill(p < rule.cutoff * p.max(), -torch.inf)

    def exit(self, row: int, p: torch.Tensor, early: EarlyExit) -> torch.Tensor:
        """The early distribution that differs most."""
        found = {}
        for layer in early.layers:
            hidden = self.residuals[layer, row]
            hidden = self.model.model.model.norm(hidden) if early.norm else hidden
            found[layer] = self.model.model.lm_head(hidden).softmax(-1)
        return max(found.values(), key=lambda q: apart(p, q, early.divergence))


def apart(p: torch.Tensor, q: torch.Tensor, kind: str) -> float:
    m = (p + q) / 2
    if kind == "jsd":
        return float(p @ (p / m).log() + q @ (q / m).log())
    return float(m @ (m / p).log() + m @ (m / q).log())


MIXES: list[list[Any]] = [
    [None, WITH_BRANCH[0], None],
    [*WITH_BRANCH, None, WITH_BRANCH[0]],
    [EARLY[0]],
    [EARLY[2], None, *EARLY, EARLY[2]],
    [WITH_BRANCH[1], EARLY[3], None, WITH_BRANCH[0], *EARLY[:3]],
]


@pytest.mark.parametrize("at_once", [8, 128])
@pytest.mark.parametrize("mix", range(len(MIXES)))
def test_rows_are_combined_in_their_leaders_places(
    mix: int, at_once: int, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order of rows; others keep their bits, and so does what padding has."""
    monkeypatch.setattr(early_stage, "AT_ONCE", at_once)
    sequences = [member for rule in MIXES[mix] for member in group(rule)]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(sequences))
        stand = Stand(model, [sequences[at] for at in order], seed)
        stand.run()
        for row, sequence in enumerate(stand.sequences):
            wanted, found = stand.wanted(row), stand.logits[row]
            assert torch.equal(found.isneginf(), wanted.isneginf())
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-10)
            assert int(stand.outputs.news.tokens[row]) == int(wanted.argmax())
            if sequence.plan is None:
                assert torch.equal(found, stand.before[row])
        assert all(stand.usable())
        assert torch.equal(stand.logits[len(sequences) : MOST], stand.before[len(sequences) : MOST])


def test_sizes_go_by_pairs_and_by_exits(model: ServedModel) -> None:
    many = [member for rule in [EARLY[2]] * 5 + WITH_BRANCH for member in group(rule)]
    assert Stand(model, many).run() == [("contrast", 2), ("contrast with early layers", 8)]
    few = group(EARLY[2]) + group(EARLY[0])
    assert Stand(model, few).run() == [("contrast with early layers", 2)]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_the_rows_made_from_it(bad: float, model: ServedModel) -> None:
    sequences = [member for rule in MIXES[4] for member in group(rule)]
    for row, sequence in enumerate(sequences):
        stand = Stand(model, sequences)
        stand.logits[row, 5] = bad
        stand.run()
        spoilt = {row, sequences.index(sequence.group[0])}
        assert stand.usable() == [at not in spoilt for at in range(len(sequences))]
        assert bool(
            ((stand.outputs.news.tokens >= 0) & (stand.outputs.news.tokens < 97))[:row].all()
        )
        rule = None if sequence.plan is None else sequence.plan.rule(ContrastRule)
        for layer in rule.early.layers if rule is not None and rule.early is not None else ():
            stand = Stand(model, sequences)
            stand.residuals[layer, row, 3] = bad
            stand.run()
            assert stand.usable() == [at != row for at in range(len(sequences))]


def test_padding_reaches_nobody(model: ServedModel) -> None:
    for name in ("contrast", "contrast with early layers"):
        for bad in (torch.nan, 1e300):
            stand = Stand(model, [group(None)[0] for _ in range(5)])
            stand.run()
            news = stand.outputs.news.tokens.clone()
            stand.logits[MOST], stand.residuals[:, MOST] = bad, bad
            for variant in stand.stages.variants:
                if variant.stage == name:
                    stand.stages.pad(stand.memory.numpy(), variant)
                    stand.stages.compute(variant)
            assert torch.equal(stand.logits[:MOST], stand.before[:MOST])
            assert torch.equal(stand.outputs.news.tokens[:MOST], news[:MOST])


CHANGES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1.2, "seed": 4, "top_p": 0.8, "top_k": 9},
    {"min_tokens": 4, "stop_token_ids": (5, 6)},
    {"logit_bias": {7: 2.0, 9: -100.0}},
    {"presence_penalty": 0.5, "temperature": 0.7, "seed": 1},
]
METHODS: list[Any] = [
    VCD(alpha=1.5, beta=0.02, noise_step=600),
    PAIContrast(gamma=2.5, cutoff=0.05),
    DoLa(layers=[0, 1, 3], early_norm=True),
    DoLa(layers="high", divergence="jsd"),
    None,
]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("changed", [False, True], ids=["free", "changed"])
def test_padded_steps_answer_as_ordinary_ones(changed: bool, overlap: bool) -> None:
    """All methods, ways to draw and numbers of rows in one batch, prompts among them.

    Who changes single logits has the whole step drawn eagerly, behind the same padded step.
    """
    requests = []
    for number, method in enumerate([*METHODS, *METHODS, *METHODS[::-1]]):
        sampling = CHANGES[number % (len(CHANGES) if changed else 3)]
        prompt = tiny.prompt("llava", images=1, seed=number, text=6 + 5 * number)
        methods = [] if method is None else [method]
        tokens = 3 + number
        name = str(number)
        asked = ask(prompt, methods, name, max_tokens=tokens, logprobs=2, **sampling)
        requests.append(asked)
    core = core_with("llava", overlap=overlap, padded_decode=True, max_num_seqs=12)
    decoder, played = core._runner._decoder, []
    play = decoder.play
    decoder.play = lambda variant: (played.append(variant), play(variant))
    found, wanted = run(core, requests), run(core_with("llava"), requests)
    for name, result in found.items():
        assert result.tokens == wanted[name].tokens, name
        assert result.last.finish_reason == wanted[name].last.finish_reason
        assert result.last.receipt == wanted[name].last.receipt
        for one, other in zip(result.logprobs, wanted[name].logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-9)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]
    stages = {variant.stage for variant in played if isinstance(variant, StageVariant)}
    assert stages >= {"contrast", "contrast with early layers", "free draw", "filtered draw"}


def test_single_precision_gives_the_same_tokens() -> None:
    def core(**config: Any) -> EngineCore:
        settings = {"dtype": "float32", "max_num_seqs": 12, "cache_tokens": 8192, **config}
        model = serve(tiny.build("llava", dtype=torch.float32))
        return EngineCore(model, EngineConfig(model="llava", **settings))

    requests = [
        ask(tiny.prompt("llava", images=1, seed=seed), [method], str(seed), max_tokens=12)
        for seed, method in enumerate(METHODS[:4])
    ]
    found, wanted = run(core(overlap=True, padded_decode=True), requests), run(core(), requests)
    assert {n: r.tokens for n, r in found.items()} == {n: r.tokens for n, r in wanted.items()}
