"""What the engine says of a sequence's time, and of what else was computed for it."""

from typing import Any

import pytest

from saccade_server.engine import core as core_module
from saccade_server.engine import scheduler, timing
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import EngineOutput, GenerateRequest
from saccade_server.engine.timing import Timing
from saccade_testing import tiny
from saccade_testing.engine import REGISTRY, ask, core_with, make_request


class Clock:
    """Stands for the module ``time``: a second passes in every step."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (core_module, scheduler, timing):
        monkeypatch.setattr(module, "time", made)
    return made


def last_ones(core: EngineCore, clock: Clock, requests: list[GenerateRequest]) -> dict[str, Any]:
    """The last outputs; a step's results are there a second after it began."""
    for request in requests:
        assert core.submit(request) is None
    found: dict[str, Any] = {}
    while core.busy:
        wait = clock.now
        launch = core._runner.launch

        def slow(chunks: Any, fill: Any) -> Any:
            clock.now = wait + 1  # noqa: B023 - called in this turn only
            return launch(chunks, fill)  # noqa: B023

        core._runner.launch = slow  # type: ignore[method-assign]
        outputs = core.step()
        core._runner.launch = launch  # type: ignore[method-assign]
        found |= {each.request_id: each for each in outputs if each.finish_reason}
    return found


def test_a_queue_of_one_seat(clock: Clock) -> None:
    core = core_with("llama", max_num_seqs=1)
    prompts = [tiny.prompt("llama", seed=seed) for seed in range(2)]
    requests = [
        make_request(prompt, f"r{index}", max_tokens=length, ignore_eos=True)
        for index, (prompt, length) in enumerate(zip(prompts, (4, 3), strict=True))
    ]
    found = last_ones(core, clock, requests)
    assert found["r0"].timing == Timing(queued=0.0, prompt=1.0, decode=3.0)
    assert found["r1"].timing == Timing(queued=4.0, prompt=1.0, decode=2.0)


def test_a_prompt_in_chunks(clock: Clock) -> None:
    core = core_with("llama", max_batched_tokens=16)
    prompt = tiny.prompt("llama", text=30)
    found = last_ones(core, clock, [make_request(prompt, max_tokens=1)])
    steps = -(-len(prompt.tokens) // 16)
    assert found["r"].timing == Timing(queued=0.0, prompt=steps, decode=0.0)


def test_sequences_that_end_early(clock: Clock) -> None:
    core = core_with("llama", max_num_seqs=1)
    prompt = tiny.prompt("llama")
    for name in "ab":
        core.submit(make_request(prompt, name, max_tokens=9, ignore_eos=True))
    core.step()
    clock.now += 2
    assert ended(core.abort("b")) == Timing(queued=2.0)
    core.step()
    assert ended(core.abort("a")) == Timing(queued=0.0, prompt=0.0, decode=2.0)
    refused = core.submit(make_request(prompt, max_tokens=10**6))
    assert refused is not None
    assert refused.timing is None


def ended(output: EngineOutput | None) -> Timing | None:
    assert output is not None
    return output.timing


@pytest.mark.parametrize("overlap", [False, True])
def test_preemption_is_told(overlap: bool) -> None:
    core = core_with("llama", cache_tokens=64 * 3, prefix_caching=False, overlap=overlap)
    prompts = [tiny.prompt("llama", seed=seed, text=40) for seed in range(3)]
    found = last_ones(
        core, Clock(), [make_request(p, f"r{p.tokens[-1]}", max_tokens=60) for p in prompts]
    )
    told = sum(each.timing.preemptions for each in found.values())
    assert told == core.stats().preemptions > 0


@pytest.mark.parametrize("overlap", [False, True])
def test_extra_passes_are_of_whom_asked_for_them(overlap: bool) -> None:
    """A branch computes a row for every token, AdaptVis the last prompt row once more, VHR one."""
    core = core_with("llava", overlap=overlap)
    prompt = tiny.prompt("llava", images=1, seed=2)
    requests = [
        ask(prompt, parsed("pai", "vcd"), "contrast", 5),
        ask(prompt, parsed("adaptvis"), "again", 5),
        ask(prompt, parsed("vhr"), "measured", 5),
        ask(prompt, parsed("pai"), "none", 5),
    ]
    found = last_ones(core, Clock(), requests)
    extra = {name: each.timing.extra_passes for name, each in found.items()}
    assert extra == {"contrast": {1: 5}, "again": {0: 1}, "measured": {0: 1}, "none": {}}


def parsed(*names: str) -> list[Any]:
    return [*REGISTRY.parse([{"method": name} for name in names])]
