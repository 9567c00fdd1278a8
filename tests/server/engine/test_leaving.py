"""A request that nobody waits for any more, in whatever state, leaves at once with all it holds."""

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from saccade_interventions.base import Intervention
from saccade_interventions.methods.pai import PAI
from saccade_interventions.methods.vcd import VCD
from saccade_server.engine import core as core_module
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import FinishReason, GenerateRequest
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, ask


def request(name: str, methods: Sequence[Intervention] = (), text: int = 20) -> GenerateRequest:
    return ask(tiny.prompt("llava", seed=len(name), text=text), methods, name, 400)


def held(core: EngineCore) -> tuple[float, int, int, int]:
    """Pages, running and waiting sequences, and all that are known, with their table rows."""
    scheduler = core._scheduler
    rows = scheduler.rows
    return (
        scheduler.pages.usage,
        len(scheduler.running),
        len(scheduler.waiting),
        len(core._sequences) + rows.programs - len(rows._free_tags),
    )


def queued(core: EngineCore) -> None:
    """Behind two that run."""


def in_prefill(core: EngineCore) -> None:
    core.step()
    (leader,) = core._scheduler.running
    assert leader.pending > 1


def in_decode(core: EngineCore) -> None:
    for _ in range(12):
        core.step()
    (leader,) = core._scheduler.running
    assert leader.generated > 0


def preempted(core: EngineCore) -> None:
    in_decode(core)
    core._scheduler._preempt(core._scheduler.running[0])
    assert core._scheduler.waiting


STATES = [queued, in_prefill, in_decode, preempted]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("methods", [[], [VCD(), PAI()]], ids=["plain", "branch"])
def test_nothing_is_held_once_its_client_has_left(
    state: Callable[[EngineCore], None],
    methods: list[Intervention],
    make_core: MakeCore,
) -> None:
    """Before the next step, however far it was; and the step in flight hurts nobody."""
    core = make_core("llava", max_num_seqs=4, max_batched_tokens=40, prefix_caching=False)
    empty = held(core)
    assert core.submit(request("left", methods, text=70)) is None
    state(core)
    last = core.abort("left")
    assert last is not None
    assert last.finish_reason is FinishReason.ABORT
    assert held(core) == empty
    assert not core.busy
    for output in core.step():
        assert output.request_id != "left"
    assert core.submit(request("next")) is None
    told = [output for _ in range(6) for output in core.step()]
    assert {output.request_id for output in told} == {"next"}


def test_one_whose_deadline_passes_while_it_waits_leaves_by_itself(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running one has the same deadline: it is its client who ends it."""
    core = make_core("llava", max_num_seqs=1)
    soon = time.monotonic() + 3600
    for name in ("runs", "waits", "patient"):
        deadline = None if name == "patient" else soon
        assert core.submit(replace(request(name), deadline=deadline)) is None
        core.step()
    told = core.step()
    assert not [output for output in told if output.finish_reason is not None]
    monkeypatch.setattr(core_module, "time", SimpleNamespace(monotonic=lambda: soon))
    told += core.step()
    (late,) = [output for output in told if output.finish_reason is not None]
    assert (late.request_id, late.finish_reason) == ("waits", FinishReason.LATE)
    assert late.timing is not None
    assert late.timing.queued > 0
    assert late.timing.prompt is None
    assert [leader.request.request_id for leader in core._scheduler.waiting] == ["patient"]
    core.abort("runs")
    told = [output for _ in range(4) for output in core.step()]
    assert {output.request_id for output in told} == {"patient"}
