"""Steered sequences among others: caches, preemption, waiting, captured and compiled steps."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from saccade_interventions.phases import parse_rows
from saccade_interventions.rules import SinkRule
from saccade_server.engine.request import FinishReason
from saccade_testing import steered, tiny
from saccade_testing.engine import MakeCore, core_with, make_request, run


@pytest.mark.parametrize("config", [{}, {"max_batched_tokens": 20}, {"cache_tokens": 64 * 7}])
def test_neighbours_caches_and_preemption_change_nothing(
    config: dict[str, int], make_core: MakeCore
) -> None:
    core = make_core("llava", **config)
    requests = steered.crowd(core)
    wanted = {}
    for request in requests:
        wanted |= steered.told(run(make_core("llava", prefix_caching=False), [request]))
    assert len({tuple(tokens) for tokens in wanted.values()}) > 8, "the plans must matter"
    for _ in range(2):  # the second time everything that may be shared is cached
        assert steered.told(run(core, requests)) == wanted
    if "cache_tokens" in config:
        assert core.stats().preemptions > 0
    residuals = core._runner.tables.residuals
    assert core.stats().cache_usage == 0
    rows = core._scheduler.rows
    assert rows.programs == 0
    for row in list(rows._idle):
        rows._give_up(row)
    assert not rows._vectors._slot_of
    assert not residuals.count[0].any()


def test_prompt_rows_are_edited_again_behind_a_preemption() -> None:
    """Alone, and with generated rows in the same chunk that nothing edits."""
    prompt = tiny.prompt("llama", seed=0)
    core = core_with("llama", prefix_caching=False)
    plan = steered.plan_for(core, prompt, [steered.steering("add rms", "prompt")])
    requests = [
        make_request(prompt, name, chosen, 8, ignore_eos=True)
        for name, chosen in (("steered", plan), ("plain", None))
    ]
    wanted = steered.told(run(core, requests))
    assert wanted["steered"] != wanted["plain"]
    core.submit(requests[0])
    found = [token for _ in range(3) for output in core.step() for token in output.tokens]
    core._scheduler._preempt(core._scheduler.running[0])
    while core.busy:
        found += [token for output in core.step() for token in output.tokens]
    assert found == wanted["steered"]


def test_a_steered_neighbour_changes_no_bit(make_core: MakeCore) -> None:
    """Log-probabilities of a plain request beside a steered one are those beside a plain one."""
    prompt = tiny.prompt("llava", images=1, seed=0, text=70)
    found = []
    for entries in ([], [steered.steering("add rms", "prompt+generated")]):
        core = make_core("llava", prefix_caching=False)
        plan = steered.plan_for(core, prompt, entries) if entries else None
        requests = [
            make_request(prompt, "plain", None, 6, logprobs=5, ignore_eos=True),
            make_request(prompt, "other", plan, 6, ignore_eos=True),
        ]
        found.append(run(core, requests)["plain"].logprobs)
    assert found[0] == found[1]


def test_pages_are_shared_up_to_the_first_steered_row(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llama", seed=0, text=140)
    core = make_core("llama")

    def cached(name: str, entries: list[dict[str, Any]]) -> int:
        plan = steered.plan_for(core, prompt, entries) if entries else None
        return int(run(core, [make_request(prompt, name, plan, 2)])[name].last.cached_tokens)

    assert cached("plain", []) == 0
    assert cached("generated only", [steered.steering("add", "last+generated")]) == 128
    assert cached("prompt", [steered.steering("add", "prompt+generated")]) == 0
    assert cached("again", [steered.steering("add", "prompt+generated")]) == 128
    stronger = {**steered.steering("add", "prompt+generated"), "coefficient": 0.31}
    assert cached("stronger", [stronger]) == 0
    assert cached("fewer", [{**steered.steering("add", "prompt+generated"), "layers": [2]}]) == 0


def test_a_request_waits_for_vectors_and_never_runs_without(make_core: MakeCore) -> None:
    """Slots for one artifact: requests with another one wait, plain ones pass."""
    prompt = tiny.prompt("llama", seed=0)
    core = make_core("llama")
    core._scheduler.rows._vectors._free.clear()
    core._scheduler.rows._vectors._free.extend([1, 2, 3])
    other = steered.made("vectors", vectors=8 * steered.VECTORS.flip(0), layers=steered.RESIDUALS)
    steered.STORE[other.digest] = other
    entries = {
        "first": steered.steering("add", "prompt+generated"),
        "same vectors": steered.steering("add", "generated"),
        "other vectors": {**steered.steering("add", "prompt+generated"), "artifact": other.digest},
    }
    plans = {name: steered.plan_for(core, prompt, [entry]) for name, entry in entries.items()}
    requests = [
        make_request(prompt, name, plan, 5, ignore_eos=True)
        for name, plan in {**plans, "plain": None}.items()
    ]
    results = run(core, requests)
    wanted = {}
    for request in requests:
        wanted |= steered.told(run(make_core("llama"), [request]))
    assert steered.told(results) == wanted
    assert wanted["first"] != wanted["other vectors"]


def test_steering_beside_attention_edits(make_core: MakeCore) -> None:
    """VAR finds its sinks in steered residuals: the probe comes after the edit."""
    prompt = tiny.prompt("llava", images=1, seed=1, text=60)
    var = {"method": "var", "tau": 1.0, "min_visual_mass": 0.02, "rho": 0.3, "move_fraction": 0.6}
    seen: dict[int, torch.Tensor] = {}
    unedited: dict[int, torch.Tensor] = {}

    def residual(index: int, h: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        seen[index] = steered.at_residuals(steered.STEERING["add rms"][1])(index, h, where)
        unedited[index] = h
        return seen[index]

    core = make_core("llava", max_batched_tokens=16)
    entries = [
        var,
        {"method": "pai", "alpha": 0.4},
        steered.steering("add rms", "prompt+generated"),
    ]
    plan = steered.plan_for(core, prompt, entries)
    request = make_request(prompt, "r", plan, 1, logprobs=1)
    sequence_tags: list[torch.Tensor] = []
    finish = core._finish

    def keep(sequence: Any, *rest: Any, **news: Any) -> Any:
        sequence_tags.append(core._runner.tables.tags.tags[sequence.tag_row, 2].clone())
        return finish(sequence, *rest, **news)

    core._finish = keep
    run(core, [request])
    oracle = steered.Oracle(tiny.build("llava"), "prompt+generated", residual=residual)
    oracle.run(prompt, 1)

    def found_in(x: torch.Tensor) -> torch.Tensor:
        return x[:, [3, 11]].abs().amax(-1) / (x.square().mean(-1) + 1e-6).sqrt() >= 1.0

    sinks = found_in(seen[2])  # PAI and VAR begin at layer 2 and have changed nothing yet
    assert 0 < int(sinks.sum()) < len(sinks)
    assert not torch.equal(sinks, found_in(unedited[2])), "the order must matter"
    remap = dict(plan.rule(SinkRule).remap)
    base = torch.from_numpy(plan.base_tags().copy())
    expected = torch.tensor(
        [
            remap.get(int(tag), int(tag)) if sink else int(tag)
            for tag, sink in zip(base, sinks, strict=True)
        ]
    )
    assert torch.equal(sequence_tags[0][: len(expected)].long(), expected)


def test_only_steps_with_steered_rows_edit_residuals(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tiny.prompt("llama", seed=0)
    core = core_with("llama", padded_decode=True, overlap=False)
    plan = steered.plan_for(core, prompt, [{**steered.steering("add", "generated"), "layers": [2]}])
    seen: list[Any] = []
    forward = core._runner.model.forward

    def note(embeddings: Any, positions: Any, step: Any, *rest: Any) -> Any:
        seen.append(step.residuals and sorted(step.residuals.sites))
        return forward(embeddings, positions, step, *rest)

    monkeypatch.setattr(core._runner.model, "forward", note)
    run(core, [make_request(prompt, "steered", plan, 3, ignore_eos=True)])
    run(core, [make_request(prompt, "plain", None, 3, ignore_eos=True)])
    every = list(range(0, 3 * steered.LAYERS + 1, 3))
    assert seen == [None, every, every, None, None, None]
    monkeypatch.setattr(core._runner, "_decoder", None)
    run(core, [make_request(prompt, "ordinary", plan, 3, ignore_eos=True)])
    assert seen[6:] == [None, [6], [6]]


def test_what_the_engine_refuses(make_core: MakeCore) -> None:
    core, prompt = make_core("llama"), tiny.prompt("llama")
    plan = steered.plan_for(core, prompt, [steered.steering("add", "generated")])
    short = replace(plan.vectors[0], size=32, data=plan.vectors[0].data[: 3 * 32 * 4])
    result = run(core, [make_request(prompt, "r", replace(plan, vectors=(short,)), 2)])["r"]
    assert result.last.finish_reason is FinishReason.ERROR
    assert "another model" in result.last.error


def test_rows_are_counted(make_core: MakeCore) -> None:
    core, prompt = make_core("llama"), tiny.prompt("llama")
    plan = steered.plan_for(core, prompt, [steered.steering("add", "last+generated")])
    result = run(core, [make_request(prompt, "r", plan, 4, ignore_eos=True)])["r"]
    rows = result.last.receipt.rows
    assert rows["last"] == 1
    assert rows["generated"] == 3
    assert set(parse_rows("last+generated")) <= set(rows)
