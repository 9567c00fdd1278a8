"""What an engine counts of its steps: each once, by what was launched for it."""

from typing import Any

import pytest

from saccade_server.engine import core as core_module
from saccade_server.engine.counts import Histogram
from saccade_server.engine.tally import Gaps
from saccade_testing import tiny
from saccade_testing.engine import REGISTRY, MakeCore, ask, core_with, make_request, run


def test_a_histogram() -> None:
    found = Histogram.of((1, 2, 5))
    for value in (0, 1, 1.5, 2, 5, 5.1):
        found.observe(value)
    found.observe(3, times=4)
    assert found.counts == [2, 2, 5, 1]
    assert found.total == pytest.approx(14.6 + 12)
    copied = found.copy()
    found.observe(1)
    assert copied.counts == [2, 2, 5, 1]


def test_gaps_of_one_step_are_added_up_by_when_the_tokens_before_came() -> None:
    gaps = Gaps()
    for since in (10.0, 10.0, 9.5):
        gaps.note(since)
    gaps.close(10.5)
    gaps.close(99.0)
    assert sum(gaps.seconds.counts) == 3
    assert gaps.seconds.total == pytest.approx(2.0)


@pytest.mark.parametrize("overlap", [False, True])
def test_every_step_and_every_token_counts(overlap: bool) -> None:
    core = core_with("llama", overlap=overlap, max_batched_tokens=64)
    requests = [
        make_request(tiny.prompt("llama", seed=seed), f"r{seed}", max_tokens=3 + seed)
        for seed in range(4)
    ]
    results = run(core, requests)
    stats = core.stats()
    assert sum(form.count for form in stats.forms) == stats.steps > 0
    assert {form.form for form in stats.forms} == {"mixed", "decode"}
    drawn = [len(result.tokens) for result in results.values()]
    assert stats.between_tokens is not None
    assert stats.step_tokens is not None
    assert sum(stats.between_tokens.counts) == sum(drawn) - len(drawn)
    assert sum(stats.step_tokens.counts) == stats.steps
    dropped = 0 if not overlap else len(requests)  # rows of sequences that had ended
    rows = sum(len(r.tokens) for r in requests) + sum(drawn) - len(drawn)
    assert rows <= stats.step_tokens.total <= rows + dropped


def test_steps_in_fixed_places_count_by_their_variant(make_core: MakeCore) -> None:
    core = make_core("llama", padded_decode=True)
    prompt = tiny.prompt("llama", seed=1)
    warm = core.stats()
    assert not warm.forms
    scale = {"method": "head_scale", "gain": 0.5, "heads": {"1": [0, 2]}}
    requests = [
        make_request(prompt, "plain", max_tokens=4, ignore_eos=True),
        ask(prompt, [*REGISTRY.parse([scale])], "edited", 6),
        make_request(prompt, "drawn", max_tokens=3, ignore_eos=True, temperature=0.9),
    ]
    run(core, requests)
    forms = core.stats().forms
    steps = [form for form in forms if not form.stage]
    assert sum(form.count for form in steps) == core.stats().steps
    padded = {(form.size, form.classes > 1): form.count for form in steps if form.form == "padded"}
    assert padded[4, True] == 2
    assert padded[2, True] == 1
    assert padded[1, True] == 2
    (stage,) = [form for form in forms if form.stage]
    assert stage.count >= 2


def test_time_between_tokens_is_that_between_results(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(core_module, "time", clock)
    core = core_with("llama")
    launch = core._runner.launch

    def slow(chunks: Any, fill: Any) -> Any:
        clock.now += 0.25
        return launch(chunks, fill)

    monkeypatch.setattr(core._runner, "launch", slow)
    run(core, [make_request(tiny.prompt("llama"), max_tokens=5, ignore_eos=True)])
    found: Any = core.stats().between_tokens
    assert found.total == pytest.approx(4 * 0.25)
    assert found.counts[found.bounds.index(0.3)] == 4
