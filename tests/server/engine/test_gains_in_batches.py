"""Measured gains in chunks, beside others, after preemption and in steps that fail."""

from typing import Any

import pytest
import torch

from saccade_interventions.rules import MeasuredGains
from saccade_server.engine.prefix import PageKeyer
from saccade_server.engine.request import FinishReason
from saccade_server.engine.sequence import Sequence
from saccade_server.models.reinforce import HeadReinforcement
from saccade_testing import tiny, vhr
from saccade_testing.engine import MakeCore, run
from saccade_testing.oracle import check
from saccade_testing.vhr import ask

VHR: dict[str, Any] = {"method": "vhr"}
CHUNKED: dict[str, Any] = {"method": "vhr", "rows": "last+generated"}


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_chunks_and_cached_prefixes(family: str, make_core: MakeCore) -> None:
    """Prompts of 100 tokens in chunks of 16, last rows together; then both from the cache."""
    prompt = tiny.prompt(family, images=2, seed=1, text=75)
    oracle = vhr.Oracle(tiny.build(family), prompt, CHUNKED)
    oracle.measure()
    wanted = oracle.run()
    core = make_core(family, max_batched_tokens=16)
    run(core, [ask(prompt, [], "plain")])
    for name in ("cold", "warm"):
        result = run(core, [ask(prompt, [CHUNKED], name)])[name]
        assert vhr.heads_of(result) == oracle.chosen
        check(result, wanted)
        assert result.last.cached_tokens == 64, "what no gain reaches is anybody's"


def test_pages_with_gains_are_found_by_nobody(make_core: MakeCore) -> None:
    """The same prompt again, plain, with the same gains and with others."""
    prompt = tiny.prompt("llava", images=1, seed=1, text=75)
    core = make_core("llava", max_batched_tokens=512)
    entries: list[Any] = [[VHR], [VHR], [], [{**VHR, "gain": 3.0}]]
    for number, entry in enumerate(entries):
        result = run(core, [ask(prompt, entry, str(number))])[str(number)]
        alone = run(make_core("llava", prefix_caching=False), [ask(prompt, entry)])["r"]
        assert result.last.cached_tokens == 0
        assert result.tokens == alone.tokens
        assert result.logprobs == alone.logprobs


def test_keys_of_rows_with_gains_name_the_sequence() -> None:
    prompt = tiny.prompt("llava", images=1, text=75)
    keys = []
    for entries in ([], [CHUNKED], [CHUNKED], [VHR]):
        sequence = Sequence(ask(prompt, entries))
        sequence.tokens += [7] * 64
        PageKeyer(sequence.request).extend(sequence, 128)
        keys.append(sequence.page_keys)
    assert keys[0][0] == keys[1][0] == keys[2][0] != keys[3][0]
    assert len({found[1] for found in keys}) == 4


def crowd() -> list[Any]:
    """Two rules, several of each, on different prompts, among plain and otherwise edited ones."""
    made = []
    for number, text in enumerate((40, 44)):
        prompt = tiny.prompt("llava", images=1, seed=number, text=text)
        for name, entries in {
            "plain": [],
            "all": [VHR],
            "last": [CHUNKED],
            "other": [{**VHR, "gain": 3.0, "relative": True}],
            "pai": [{"method": "pai", "alpha": 0.7}],
            "both": [{"method": "pai", "alpha": 0.7, "rows": "prompt+generated"}, CHUNKED],
        }.items():
            made.append(ask(prompt, entries, f"{name}-{number}", 16))
    return made


@pytest.mark.parametrize(
    "config", [{}, {"max_batched_tokens": 130}, {"cache_tokens": 64 * 5}], ids=str
)
def test_in_a_crowd_each_gets_what_it_gets_alone(
    config: dict[str, int], make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roomy; with hardly room for one prompt; and preempted after they were measured."""
    requests = crowd()
    core = make_core("llava", **config)
    preempt, preempted = core._scheduler._preempt, []

    def note(leader: Any) -> None:
        if leader.plan is not None and leader.plan.rule(MeasuredGains) and not leader.branches:
            preempted.append(leader)
        preempt(leader)

    monkeypatch.setattr(core._scheduler, "_preempt", note)
    results = run(core, requests)
    alone = make_core("llava", prefix_caching=False)
    for request in requests:
        single = run(alone, [request])[request.request_id]
        result = results[request.request_id]
        assert result.tokens == single.tokens, request.request_id
        receipt = result.last.receipt
        assert receipt is None or receipt.findings == single.last.receipt.findings
    assert bool(preempted) == ("cache_tokens" in config)
    stats = core.stats()
    assert (stats.cache_usage, stats.plans) == (0, 0)


def test_a_neighbour_that_is_measured_changes_nothing_bit_for_bit(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llava", images=1, seed=0, text=40)
    found = []
    for entries in ([], [VHR]):
        core = make_core("llava", prefix_caching=False)
        requests = [ask(prompt, [], "plain"), ask(prompt, entries, "other")]
        found.append(run(core, requests)["plain"].logprobs)
    assert found[0] == found[1]


@pytest.mark.parametrize("entry", [VHR, CHUNKED], ids=["all", "last"])
def test_a_step_that_fails_half_way_is_measured_anew(
    entry: Any, make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gains of the first layers are in the tables when it fails; they must not count twice."""
    prompt = tiny.prompt("llava", images=1, seed=0)
    wanted = run(make_core("llava"), [ask(prompt, [entry])])["r"]
    after, calls = HeadReinforcement.after, []

    def fail_once(self: Any, call: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(call.layer)
        if len(calls) == len(vhr.LAYERS):
            raise RuntimeError("out of luck")
        return after(self, call, output)

    monkeypatch.setattr(HeadReinforcement, "after", fail_once)
    result = run(make_core("llava"), [ask(prompt, [entry])])["r"]
    assert calls == [*vhr.LAYERS, *vhr.LAYERS]
    assert result.tokens == wanted.tokens
    assert result.logprobs == wanted.logprobs
    assert result.last.receipt.findings == wanted.last.receipt.findings


def test_a_prompt_too_long_for_a_step_is_refused(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llava", images=1, seed=2, text=40)
    core = make_core("llava", max_batched_tokens=64)
    output = core.submit(ask(prompt, [VHR]))
    assert output.finish_reason is FinishReason.ERROR
    assert "one step" in output.error
    assert core.submit(ask(prompt, [CHUNKED])) is None
