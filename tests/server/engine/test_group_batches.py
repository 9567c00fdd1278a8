"""Groups in the engine: no neighbour, chunk, preemption, failure or abort changes an answer."""

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace as with_fields

from saccade_interventions.methods.dola import DoLa
from saccade_interventions.methods.pai import PAI
from saccade_interventions.methods.pai_contrast import PAIContrast
from saccade_interventions.methods.vcd import VCD
from saccade_server.engine.local import LocalEngine
from saccade_server.engine.messages import Lend, Reclaim, Submit, decode_command, encode
from saccade_server.engine.request import Array, FinishReason
from saccade_server.engine.stages import StageVariant
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, ask, core_with, run

WAYS = [
    {"overlap": False, "padded_decode": False},
    {"overlap": True, "padded_decode": True},
]


def workload() -> list[Any]:
    """Every method, neighbours with none, every kind of sampling, and sequences that end early."""
    prompts = [tiny.prompt("llava", images=i % 2 + 1, seed=i, text=t) for i, t in enumerate(TEXTS)]
    methods: dict[str, Any] = {
        "plain": [],
        "vcd": [VCD(alpha=1.5, noise_step=700)],
        "pai": [PAI(alpha=1.0), PAIContrast(gamma=2.0)],
        "vcd-edited": [PAI(alpha=1.0), VCD(edit_branch=True)],
        "dola": [DoLa(layers=[0, 1, 3])],
        "plain-too": [],
    }
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "seed": 3},
        {"temperature": 1.5, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "seed": 4, "logprobs": 3},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "logit_bias": {20: 2.0}},
    ]
    ends = {"ignore_eos": False, "stop_token_ids": tuple(range(10, 97, 11))}
    return [
        ask(prompt, methods[name], f"{name}-{i}", 8 + 5 * (i % 3), **kinds[(i + j) % 4], **ends)
        for i, prompt in enumerate(prompts)
        for j, name in enumerate(methods)
    ]


TEXTS = (55, 42, 27, 90)


def told(results: Any) -> dict[str, Any]:
    """All that a client could see, logprobs up to their last bits."""
    return {
        name: (r.tokens, r.last.finish_reason, r.last.error, near(r.logprobs), counters(r))
        for name, r in results.items()
    }


def near(logprobs: Any) -> list[Any]:
    return [(entry.token, pytest.approx(entry.logprob, abs=2e-5)) for entry in logprobs]


def counters(result: Any) -> Any:
    return None if result.last.receipt is None else result.last.receipt.counters


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    """What each request of the workload gets alone; computed once."""
    return {}


@pytest.mark.parametrize("way", WAYS, ids=["ordinary", "as-on-a-gpu"])
@pytest.mark.parametrize(
    "limits", [{}, {"max_batched_tokens": 40}, {"cache_tokens": 64 * 10}], ids=str
)
def test_neither_neighbours_nor_chunks_nor_preemption_change_an_answer(
    way: Any, limits: Any, wanted: Any
) -> None:
    requests = workload()
    if not wanted:
        for request in requests:
            wanted |= told(run(core_with("llava", prefix_caching=False), [request]))
    core = core_with("llava", **way, **limits)
    found = told(run(core, requests))
    for name, said in found.items():
        assert said == wanted[name], name
    assert {said[1] for said in found.values()} == {FinishReason.STOP, FinishReason.LENGTH}
    stats = core.stats()
    assert ("cache_tokens" in limits) == (stats.preemptions > 0)
    assert (stats.cache_usage, stats.running, core._scheduler.rows.programs) == (0, 0, 0)
    assert not core._runner._positions


def test_groups_decode_in_the_padded_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Branches and early layers alike, with their stage behind every step and no eager draw."""
    core = core_with("llava", overlap=True, padded_decode=True)
    sizes: list[int] = []
    inner = core._runner._decoder.run

    def count(roster: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(len(roster.sequences))
        return inner(roster, *rest, **more)

    monkeypatch.setattr(core._runner._decoder, "run", count)
    play, played = core._runner._decoder.play, []
    monkeypatch.setattr(core._runner._decoder, "play", lambda v: (played.append(v), play(v)))
    prompt = tiny.prompt("llava")
    for method, rows, stage in ((VCD(), 2, "contrast"), (DoLa(), 1, "contrast with early layers")):
        run(core, [ask(prompt, [method], max_tokens=6)])
        assert sizes == [rows] * 5
        assert [v for v in played if isinstance(v, StageVariant)] == [(stage, 1)] * 5
        sizes.clear()
        played.clear()


def test_logits_of_a_branch_that_are_not_finite_fail_its_request_alone(make_core: MakeCore) -> None:
    core = make_core("llava")
    good = ask(tiny.prompt("llava", seed=2), [VCD()], "good")
    alone = run(make_core("llava"), [good])["good"].tokens
    bad = ask(tiny.prompt("llava", seed=1), [VCD()], "bad")
    (branch,) = bad.branches
    broken = Array.pack(np.full((3, 24, 24), np.nan, np.float32))
    first = with_fields(branch.images[0], digest="nan", pixels=broken)
    branch = with_fields(branch, images=(first, *branch.images[1:]))
    found = run(core, [with_fields(bad, branches=(branch,)), good])
    assert found["bad"].last.finish_reason is FinishReason.ERROR
    assert "not finite" in found["bad"].last.error
    assert found["good"].tokens == alone
    assert core.stats().cache_usage == 0


@pytest.mark.parametrize("call", range(1, 5))
def test_a_step_that_fails_is_repeated_group_by_group(
    call: int, make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [tiny.prompt("llava", seed=seed) for seed in range(3)]
    requests = [ask(p, m, str(i)) for i, (p, m) in enumerate(zip(prompts, MIXED, strict=True))]
    wanted = {name: r.tokens for name, r in run(make_core("llava"), requests).items()}
    core = make_core("llava")
    forward, count = core._runner.model.forward, iter(range(10**6))

    def sometimes(*args: Any) -> torch.Tensor:
        if next(count) == call:
            raise RuntimeError("the forward pass failed")
        return forward(*args)

    monkeypatch.setattr(core._runner.model, "forward", sometimes)
    found = run(core, requests)
    assert {name: r.tokens for name, r in found.items()} == wanted
    assert core.stats().cache_usage == 0


MIXED: Any = ([VCD()], [], [PAIContrast(gamma=2.0)])


@pytest.mark.parametrize("steps", range(1, 6))
def test_an_abort_ends_the_whole_group(steps: int) -> None:
    core = core_with("llava", overlap=True, padded_decode=True, max_batched_tokens=30)
    prompt = tiny.prompt("llava", text=40)
    assert core.submit(ask(prompt, [VCD(edit_branch=True), PAI()], max_tokens=30)) is None
    for _ in range(steps):
        core.step()
    core.abort("r")
    assert not core.busy
    stats = core.stats()
    assert (stats.cache_usage, stats.running, stats.waiting) == (0, 0, 0)
    assert not core._scheduler._keyers
    wanted = run(core_with("llava"), [ask(prompt, [VCD()])])["r"]
    assert run(core, [ask(prompt, [VCD()])])["r"].tokens == wanted.tokens


def test_a_greedy_answer_never_leaves_what_the_cut_allows(make_core: MakeCore) -> None:
    """beta 1 leaves the likeliest token of the clean image alone, whatever alpha and sampling."""
    prompt = tiny.prompt("llava", seed=4)
    plain = run(make_core("llava"), [ask(prompt, [])])["r"].tokens
    sampling = {"temperature": 1.7, "seed": 9, "logprobs": 2}
    result = run(make_core("llava"), [ask(prompt, [VCD(alpha=5, beta=1)], **sampling)])["r"]
    assert result.tokens == plain
    for entry in result.logprobs:
        assert [value for _, value in entry.top] == [0.0, -np.inf]


def test_branches_reach_an_engine_behind_a_client() -> None:
    """Their pixels are lent like all others, once for any number of requests, and given back."""
    requests = [ask(tiny.prompt("llava"), [VCD()], str(number)) for number in range(2)]
    wanted = run(core_with("llava"), requests)["0"].tokens
    assert decode_command(encode(Submit(requests[0], 3))) == Submit(requests[0], 3)
    sent: list[Any] = []

    async def main() -> None:
        engine = LocalEngine(core_with("llava"))
        engine._lender._send = lambda command: (sent.append(command), engine._send(command))[1]

        async def collect(request: Any) -> list[int]:
            return [token async for output in engine.submit(request) for token in output.tokens]

        assert await asyncio.gather(*map(collect, requests)) == [wanted, wanted]
        assert not engine._lender._open
        await engine.close()

    asyncio.run(main())
    assert sum(isinstance(command, Lend) for command in sent) == 4  # two images, seen two ways
    assert sum(isinstance(command, Reclaim) for command in sent) == 4
