"""Leaders and branches are admitted, computed, preempted and ended together. No model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.rules import AnyRule, Branch, ContrastRule, MeasuredGains
from saccade_kernels.controls import ControlShape
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.groups import form
from saccade_server.engine.limits import why_refused
from saccade_server.engine.pages import PagePool
from saccade_server.engine.request import (
    BranchInput,
    EngineInfo,
    GenerateRequest,
    SamplingParams,
)
from saccade_server.engine.rows import PlanRows
from saccade_server.engine.scheduler import Scheduler
from saccade_server.engine.sequence import Sequence


class NoTables:
    """Rows are handed out and nothing is written."""

    def write_program(self, row: int, program: Any) -> None: ...

    def open_tags(self, row: int, plan: Any) -> None: ...

    def expect_gains(self, row: int, layers: Any) -> None: ...


def scheduler(pages: int = 20, seqs: int = 8, budget: int = 100, caching: bool = True) -> Scheduler:
    return Scheduler(PagePool(pages), PlanRows(NoTables(), 33, 9), seqs, budget, caching)


def plan(length: int, *rules: AnyRule) -> Plan:
    shape = ControlShape(4, 4, 16)
    return Plan(shape, prompt_length=length, question_start=0, classes=1, rules=rules)


CONTRAST = ContrastRule(2.0, 1.0, 0.1, branch=Branch("deleted"))


def measured(*phases: Phase) -> MeasuredGains:
    return MeasuredGains((1,), 1.5, phases)


def request(
    length: int,
    *lengths: int,
    measuring: int | None = None,
    start: int = 0,
    phases: tuple[Phase, ...] = (Phase.GENERATED,),
    **fields: Any,
) -> GenerateRequest:
    """A prompt with contrasting branches of these lengths, and one that measures."""
    branches = [BranchInput(tokens=tuple(range(start, start + size))) for size in lengths]
    rules: list[AnyRule] = [CONTRAST] if lengths else []
    if measuring is not None:
        tokens = tuple(range(start, start + measuring))
        branches.append(BranchInput(tokens=tokens, measures=True))
        rules.append(measured(*phases))
    return GenerateRequest(
        request_id=f"{start}",
        tokens=tuple(range(start, start + length)),
        sampling=SamplingParams(max_tokens=1000),
        branches=tuple(branches),
        plan=plan(length, *rules) if rules else None,
        **fields,
    )


def advance(made: Scheduler) -> list[tuple[int, int]]:
    """One step; every leader that reaches its last token gets another. (start, length)s."""
    chunks = made.schedule()
    made.start(chunks)
    finish(made, chunks)
    return [(chunk.start, chunk.length) for chunk in chunks]


def finish(made: Scheduler, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        if chunk.sequence in chunk.sequence.group:  # it may have measured, and left
            made.complete(chunk)
    for chunk in chunks:
        for member in chunk.sequence.group if chunk.draws else ():
            member.append(0)


def test_the_last_rows_run_in_one_step() -> None:
    made = scheduler(budget=39)
    made.add(form(request(50, 30)))
    assert advance(made) == [(0, 39)]
    assert advance(made) == [(39, 10), (0, 29)]  # both stop before their last rows
    assert advance(made) == [(49, 1), (29, 1)]
    assert advance(made) == [(50, 1), (30, 1)]


def test_one_token_is_drawn_and_everybody_gets_it() -> None:
    made, leader = scheduler(), form(request(5, 3))
    made.add(leader)
    chunks = made.schedule()
    assert [(chunk.samples, chunk.draws) for chunk in chunks] == [(True, True), (True, False)]
    made.start(chunks)
    branch = leader.branches[0]
    assert (leader.pending, branch.pending) == (1, 1)  # the next step need not know the token
    finish(made, chunks)
    assert (leader.tokens[-1], branch.tokens[-1], leader.drawing, branch.drawing) == (0, 0, 0, 0)


def test_a_branches_that_measures_leaves_after_the_last_prompt_row() -> None:
    made, leader = scheduler(budget=39), form(request(50, measuring=30))
    made.add(leader)
    advance(made)
    (branch,) = leader.branches
    assert advance(made) == [(39, 10), (0, 29)]
    chunks = made.schedule()
    assert [(c.samples, c.sequence.measures) for c in chunks] == [(True, False), (False, True)]
    assert made.start(chunks) == [branch]
    assert (leader.branches, branch.pages) == ([], [])
    finish(made, chunks)
    assert advance(made) == [(50, 1)]
    made.remove(leader)
    assert made.pages.usage == 0


def test_a_group_is_admitted_whole_or_not_at_all() -> None:
    made = scheduler(pages=4, seqs=2, budget=200)  # three pages; 70 tokens need two
    small, large = form(request(10)), form(request(70, 70, start=500))
    made.add(large)
    made.add(small)
    assert advance(made) == []  # first come, first served
    assert (made.pages.usage, large.pages, large.branches[0].pages) == (0, [], [])
    made.remove(large)
    assert advance(made) == [(0, 10)]
    other = form(request(10, 10, start=200))
    made.add(other)
    assert advance(made) == [(10, 1)]  # one of two seats is taken
    made.remove(small)
    assert advance(made) == [(0, 10), (0, 10)]


def test_rows_are_taken_for_all_or_for_none() -> None:
    rows = PlanRows(NoTables(), 9, 4)  # three tag rows; each group needs two
    made = Scheduler(PagePool(20), rows, 8, 100)
    base = request(10, 10)
    branch = with_fields(base.branches[0], plan=plan(10))
    group = with_fields(base, branches=(branch,))
    first, second, plain = (form(group), form(group), form(request(5, start=90)))
    for leader in (first, second, plain):
        made.add(leader)
    made.schedule()
    assert made.running == [first, plain]
    assert all(member.tag_row == 0 for member in second.group)
    made.remove(first)
    made.schedule()
    assert made.running == [plain, second]
    assert all(member.tag_row for member in second.group)


def test_a_group_is_preempted_together_and_goes_on_in_step() -> None:
    made = scheduler(pages=5, caching=False)
    old, young = form(request(63, start=700)), form(request(63, 60))
    made.add(old)
    assert advance(made) == [(0, 63)]
    made.add(young)
    assert advance(made) == [(63, 1), (0, 62), (0, 37)]
    while made.preemptions == 0:
        advance(made)
    assert [m.pages for m in young.group] == [[], []]
    assert [m.computed for m in young.group] == [0, 0]
    assert [m.preemptions for m in young.group] == [1, 1]
    drawn = young.generated
    made.remove(old)
    while young.generated == drawn:
        advance(made)
    assert young.branches[0].generated == young.generated


EVERY = tuple(Phase)


def test_whole_prompts_are_one_chunk_each_and_decodes_make_way_once() -> None:
    made = scheduler(budget=60)
    busy = [form(request(4, start=10 * i)) for i in range(4)]
    for leader in busy:
        made.add(leader)
    advance(made)
    whole = form(request(33, measuring=25, start=300, phases=EVERY))
    assert whole.needs.whole_prompt
    made.add(whole)
    # 58 tokens and four decodes are more than a step has.
    assert advance(made) == [(4, 1), (4, 1), (0, 33), (0, 25)]
    assert advance(made) == [(5, 1), (5, 1), (4, 1), (4, 1), (33, 1)]


def test_a_whole_prompt_is_whole_again_after_preemption_and_finds_no_prefix() -> None:
    made = scheduler(pages=9, budget=300)
    first = form(request(130, measuring=100, start=0, phases=EVERY))
    made.add(first)
    assert advance(made) == [(0, 130), (0, 100)]
    for _ in range(4):
        advance(made)
    made._preempt(first)
    assert advance(made) == [(0, 130)]  # the generated rows follow
    assert advance(made) == [(130, 5)]
    assert first.cached_tokens == 0


def test_pages_are_shared_by_groups_of_one_salt() -> None:
    made = scheduler(pages=60, seqs=16, budget=900)
    for salt, found in (("", 0), ("a", 0), ("b", 0), ("a", 128), ("", 128)):
        group = form(request(150, 140, start=0, cache_salt=salt))
        made.add(group)
        advance(made)
        # A branch of other tokens would find nothing; this one begins like its leader.
        assert [member.cached_tokens for member in group.group] == [found, found], salt
    own = made.running[2]
    made._preempt(own)
    made.schedule()
    assert own.computed == 128


def test_branches_share_prefixes_like_anybody() -> None:
    made = scheduler(budget=500)
    made.add(form(request(150)))
    advance(made)
    group = form(request(150, 140))
    made.add(group)
    advance(made)
    assert [member.cached_tokens for member in group.group] == [128, 128]


@pytest.mark.parametrize("seed", range(12))
def test_groups_keep_in_step_whatever_happens(seed: int) -> None:
    """Random groups in too small a cache; everything finishes and nothing is left behind."""
    rng = np.random.default_rng(seed)
    made = scheduler(pages=8, seqs=6, budget=int(rng.integers(20, 90)), caching=bool(seed % 2))
    waiting = []
    for number in range(14):
        sizes = rng.integers(1, 64, 3).tolist()
        kind = int(rng.integers(4))
        lengths = sizes[1:2] if kind % 2 else []
        measuring = min(sizes[2], 30) if kind > 1 else None
        waiting.append(form(request(sizes[0], *lengths, measuring=measuring, start=50 * number)))
    wanted = {leader: int(rng.integers(1, 60)) for leader in waiting}
    steps = 0
    while waiting or made.running or made.waiting:
        steps += 1
        assert steps < 5000
        if waiting and rng.random() < 0.5:
            made.add(waiting.pop())
        chunks = made.schedule()
        check(made, chunks)
        made.start(chunks)
        finish(made, chunks)
        for leader in [*made.running, *made.waiting]:
            if leader.generated >= wanted[leader] or rng.random() < 0.002:
                made.remove(leader)
    assert made.pages.usage == 0
    assert not made._keyers
    assert len(made.rows._free_tags) == 8
    assert seed > 9 or made.preemptions > 0


def check(made: Scheduler, chunks: list[Chunk]) -> None:
    assert sum(chunk.length for chunk in chunks) <= made._max_batched_tokens
    assert sum(len(leader.group) for leader in made.running) <= made._max_num_seqs
    at_end: dict[Sequence, list[bool]] = {}
    for chunk in chunks:
        sequence = chunk.sequence
        assert sequence.group[0] in made.running
        assert chunk.length > 0
        assert len(sequence.pages) * 64 >= chunk.end
        at_end.setdefault(sequence.group[0], []).append(chunk.end == sequence.length)
    for leader, ends in at_end.items():
        assert not any(ends) or ends == [True] * len(leader.group)


INFO = EngineInfo(
    model="m",
    family="llava",
    device="cpu",
    dtype="float32",
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=16,
    hidden_size=64,
    vocab_size=100,
    eos_token_ids=(2,),
    max_model_len=512,
    max_num_seqs=2,
    cache_tokens=512,
    max_waiting=4,
    max_programs=4,
    max_batched_tokens=64,
)


def limited(made: GenerateRequest, tokens: int = 10) -> GenerateRequest:
    return with_fields(made, sampling=SamplingParams(max_tokens=tokens))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (limited(request(20, 20)), None),
        (limited(request(20, measuring=20, phases=EVERY)), None),
        (limited(request(90, measuring=20)), None),
        (limited(request(20, 20, measuring=20)), "runs as 3 sequences"),
        (limited(request(20, 20), 250), "tokens of cache"),
        (limited(request(50, measuring=20, phases=EVERY)), "in one step"),
    ],
)
def test_what_can_never_run_is_refused(made: GenerateRequest, reason: str | None) -> None:
    found = why_refused(made, INFO)
    assert found is None if reason is None else reason in (found or "")


def test_branches_and_plan_must_fit() -> None:
    made = limited(request(20, 20))
    branch = made.branches[0]
    assert "plan asks for" in (why_refused(with_fields(made, plan=None), INFO) or "")
    assert "plan asks for" in (why_refused(with_fields(made, branches=()), INFO) or "")
    for wrong, reason in (
        (with_fields(branch, tokens=()), "empty"),
        (with_fields(branch, tokens=(100,)), "vocabulary"),
        (with_fields(branch, tokens=(-1,)), "vocabulary"),
        (with_fields(branch, tokens=(1, 2**63)), "vocabulary"),
        (with_fields(branch, plan=plan(19)), "another prompt"),
        (
            with_fields(branch, plan=replace(plan(20), shape=ControlShape(3, 4, 16))),
            "another model",
        ),
        (with_fields(branch, tokens=(1,) * 505), "exceed the limit"),
    ):
        assert reason in (why_refused(with_fields(made, branches=(wrong,)), INFO) or "")
