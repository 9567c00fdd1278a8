"""Sequences with key classes of single heads beside others, and in the padded step of all."""

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from saccade_interventions.edits import MassEdit, TagRun
from saccade_interventions.phases import Phase
from saccade_interventions.registry import Registry
from saccade_server.engine.wants import Search
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, ask, core_with, run

STEPS = 7


def request(prompt: Any, name: str, **entry: Any) -> Any:
    """A plain request, or one that names a method; thresholds are such that tiny models reach."""
    if entry.get("method") == "act":
        entry = {"heads": {"1": [0, 3], "2": [1, 2, 3]}, "theta": 0.06, "beta": 0.2, **entry}
    methods = Registry.discover().parse([entry] if entry else [])
    return ask(prompt, methods, name, STEPS, logprobs=1)


def check(found: Any, wanted: Any) -> None:
    assert found.tokens == wanted.tokens
    for one, other in zip(found.logprobs, wanted.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-10)


def test_neighbours(make_core: MakeCore) -> None:
    """Plain and edited neighbours, and two calibrated ones: all get what they get alone."""
    core = make_core("qwen3", max_batched_tokens=64)
    entries: list[dict[str, Any]] = [
        {"method": "act"},
        {},
        {"method": "act", "heads": {"0": [2], "2": [0]}, "decode": "row"},
        {"method": "pasta", "spans": [[3, 9]], "layers": [2]},
    ]
    requests = [
        request(tiny.prompt("qwen3", seed=seed, text=20 + seed), f"r{seed}", **entry)
        for seed, entry in enumerate(entries)
    ]
    alone = {r.request_id: run(core, [r])[r.request_id] for r in requests}
    for name, result in run(core, requests).items():
        check(result, alone[name])


def test_generated_rows_share_the_padded_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a rule says of them; a plain neighbour gets the bits that it gets beside another."""
    core = core_with("llama", overlap=True, padded_decode=True)
    decoder, seen = core._runner._decoder, []
    compute = decoder.compute

    def play(variant: Any) -> None:
        seen.append(variant)
        compute(variant)

    monkeypatch.setattr(decoder, "play", play)
    prompt, other = (tiny.prompt("llama", seed=seed, text=20) for seed in (1, 2))
    found = {}
    for decode in ("", "running", "row", "frozen", "off"):
        entry = {"method": "act", "decode": decode} if decode else {}
        requests = [request(prompt, "r", **entry), request(other, "plain")]
        found[decode] = run(core, requests)["plain"].logprobs
        wanted = Search.PER_HEAD_CLASSES if decode not in ("", "off") else Search.NOTHING
        assert {variant.search for variant in seen} == {wanted}
        assert {variant.size for variant in seen} == {2}
        assert len(seen) == STEPS - 1, "the first token comes from the prompt's own step"
        seen.clear()
    assert all(logprobs == found[""] for logprobs in found.values())


def test_fewer_sizes_search(monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_with("llama", overlap=True, padded_decode=True)
    decoder, seen = core._runner._decoder, []
    compute = decoder.compute

    def play(variant: Any) -> None:
        seen.append(variant)
        compute(variant)

    monkeypatch.setattr(decoder, "play", play)
    monkeypatch.setattr(decoder, "sizes", (1, 2, 3, 4, 5, 6))
    assert decoder.search_sizes == (1, 2, 4, 6)
    prompts = [tiny.prompt("llama", seed=seed, text=9) for seed in range(3)]
    entries: list[dict[str, Any]] = [{"method": "act"}, {}, {}]
    requests = [
        request(prompt, str(number), **entry)
        for number, (prompt, entry) in enumerate(zip(prompts, entries, strict=True))
    ]
    run(core, requests)
    assert {variant.size for variant in seen} == {4}


def test_rows_without_classes_of_their_own_beside_others(make_core: MakeCore) -> None:
    """Behind a prompt that is calibrated alone, its heads move masses by tags like any other."""
    core = make_core("llama")
    prompts = [tiny.prompt("llama", seed=seed, text=20) for seed in (1, 2)]
    calibrated = request(prompts[0], "off", method="act", decode="off", heads={"1": [0, 1]})
    transform = ((1.0, 0.0), (0.0, 0.1))
    mass = MassEdit(((1, (0, 1)), (2, (1,))), (Phase.GENERATED,), transform)
    plan = calibrated.plan
    tagged = replace(plan, masses=(*plan.masses, mass), tags=(TagRun(2, 9, 1),), classes=2)
    requests = [
        structs.replace(calibrated, plan=tagged),
        request(prompts[1], "running", method="act"),
    ]
    together = run(core, requests)
    for one in requests:
        check(together[one.request_id], run(make_core("llama"), [one])[one.request_id])
