"""How sequences with grammars go through the engine: waiting, overlap, preemption, failures."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from saccade_interventions.methods.vcd import VCD
from saccade_server.engine.core import EngineCore
from saccade_server.engine.flight import InFlight
from saccade_server.engine.masks import Masks
from saccade_server.engine.request import EngineOutput, Failure, FinishReason
from saccade_server.engine.stages import StageVariant
from saccade_server.engine.traces.data import EntropyReading, Trace
from saccade_server.grammars.errors import GrammarFailed
from saccade_server.grammars.grammar import GrammarCount
from saccade_server.grammars.matcher import Matcher
from saccade_testing import held, tiny
from saccade_testing.engine import ask, core_with, make_request, run
from saccade_testing.held import text_of

AS_ON_A_GPU = {"overlap": True, "padded_decode": True}
WAYS: list[dict[str, Any]] = [{}, {"overlap": True}, AS_ON_A_GPU]
EXPRESSION = r"(ab|12|[c-h]{2}|true){3,5}\.[0-9]{2}"
SAMPLED = {"temperature": 1.2, "seed": 5}


def engine(**config: Any) -> EngineCore:
    return core_with("llama", held.vocabulary(), **config)


def asking(name: str, expression: str = EXPRESSION, at: int = 0, **sampling: Any) -> Any:
    prompt = tiny.prompt("llama", seed=at)
    return held.held(make_request(prompt, name, None, 24, **sampling), expression)


def free(name: str, count: int = 9, at: int = 0, **sampling: Any) -> Any:
    prompt = tiny.prompt("llama", seed=at)
    return make_request(prompt, name, None, count, ignore_eos=True, **sampling)


class Slow:
    """A compiler that is done when it is told to be."""

    def __init__(self, core: EngineCore) -> None:
        self._start = core._grammars._compiler.start
        self.waiting: list[tuple[Any, Future[Matcher]]] = []
        core._grammars._compiler = self  # type: ignore[assignment]

    def start(self, grammar: Any) -> Future[Matcher]:
        self.waiting.append((grammar, Future()))
        return self.waiting[-1][1]

    def finish(self) -> None:
        for grammar, future in self.waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(self._start(grammar).result())
        self.waiting.clear()


def steps(core: EngineCore, count: int) -> list[EngineOutput]:
    return [output for _ in range(count) for output in core.step()]


class TestCompiling:
    def test_nobody_else_waits_for_it(self) -> None:
        core = engine()
        slow = Slow(core)
        core.submit(asking("held"))
        core.submit(free("free"))
        found = steps(core, 9)
        assert {output.request_id for output in found} == {"free"}
        assert found[-1].finish_reason is FinishReason.LENGTH
        assert (core.stats().waiting, core.stats().running) == (1, 0)
        slow.finish()
        (first,) = core.step()
        assert (first.request_id, len(first.tokens)) == ("held", 1)

    def test_an_engine_with_nothing_else_to_do_does_not_spin(self) -> None:
        core = engine()
        slow = Slow(core)
        core.submit(asking("held"))
        began, spent = time.perf_counter(), time.thread_time()
        count = 0
        while time.perf_counter() < began + 0.2:
            assert not core.step()
            count += 1
        assert count <= 110
        assert time.thread_time() - spent < 0.1
        assert core.steps == 0
        assert core.busy
        slow.finish()
        assert core.step()

    def test_who_leaves_or_is_late_waits_no_more(self) -> None:
        core = engine()
        slow = Slow(core)
        core.submit(asking("leaves"))
        core.submit(replace(asking("late"), deadline=time.monotonic() + 0.02))
        left = core.abort("leaves")
        assert (left.finish_reason, left.grammar) == (FinishReason.ABORT, GrammarCount())
        time.sleep(0.03)
        (late,) = core.step()
        assert (late.request_id, late.finish_reason) == ("late", FinishReason.LATE)
        assert [future.cancelled() for _, future in slow.waiting] == [True, True]
        slow.finish()
        assert not core.busy
        assert not core._grammars._compiling

    def test_the_queue_s_order_holds_among_those_that_are_ready(self) -> None:
        core = engine(max_num_seqs=1, max_batched_tokens=64)
        slow = Slow(core)
        requests = [
            replace(asking("later", "ab"), priority=2),
            replace(free("free", 2), priority=1),
            replace(asking("soon", "ab"), priority=0),
        ]
        for request in requests:
            core.submit(request)
        ended = [o.request_id for o in steps(core, 2) if o.finish_reason]
        slow.finish()
        while core.busy:
            ended += [o.request_id for o in core.step() if o.finish_reason]
        assert ended == ["free", "soon", "later"]


def test_forward_passes_are_queued_before_the_tokens_that_masks_need_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host reads a step and fills masks while the next one's forward pass runs."""
    core = engine(overlap=True)
    seen: list[str] = []

    def noting(name: str, function: Any) -> Any:
        return lambda *given, **more: (seen.append(name), function(*given, **more))[1]

    forward = core._runner.model.forward
    monkeypatch.setattr(core._runner.model, "forward", noting("forward", forward))
    monkeypatch.setattr(InFlight, "_wait", noting("read", InFlight._wait))
    monkeypatch.setattr(Matcher, "accept", noting("tell", Matcher.accept))
    monkeypatch.setattr(Matcher, "fill", noting("fill", Matcher.fill))
    run(core, [asking("r", "[ab]{3}")])
    step = ["forward", "read", "tell", "fill"]
    assert seen == ["forward", "fill", *step * 3, "forward", "read", "tell"]


@pytest.mark.parametrize("way", WAYS)
def test_who_is_preempted_goes_on_in_its_grammar(way: dict[str, Any]) -> None:
    requests = [asking(f"{n}", "[a-h]{70}", n, **SAMPLED) for n in range(4)]
    requests = [replace(r, sampling=replace(r.sampling, max_tokens=90)) for r in requests]
    wanted = run(engine(), requests)
    core = engine(cache_tokens=64 * 5, prefix_caching=False, **way)
    found = run(core, requests)
    assert core.stats().preemptions > 0
    for name, result in found.items():
        assert result.tokens == wanted[name].tokens
        assert result.last.grammar == wanted[name].last.grammar
        assert result.last.grammar.complete


@pytest.mark.parametrize("stage", ["masks", "contrast", "masked rows", "free draw"])
def test_a_step_that_fails_behind_its_forward_pass_is_tried_again(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No token is told twice, and no mask is left for the next step's rows."""
    prompt = tiny.prompt("llava", images=1, seed=3)
    requests = [
        held.held(ask(prompt, [VCD(alpha=1.5, beta=0.1)], "vcd", 20, **SAMPLED), EXPRESSION),
        held.held(ask(prompt, [], "plain", 20, **SAMPLED), EXPRESSION),
        ask(prompt, [VCD(alpha=1.5, beta=0.1)], "free", 12),
    ]
    wanted = run(core_with("llava", held.vocabulary()), requests)
    core = core_with("llava", held.vocabulary(), **AS_ON_A_GPU)
    decoder = core._runner._decoder
    play, played = decoder.play, [0]

    def fail(variant: Any) -> None:
        if isinstance(variant, StageVariant) and variant.stage == stage:
            played[0] += 1
            if played[0] in (3, 10):
                raise RuntimeError("no memory")
        play(variant)

    launch, clean = core._runner.launch, []

    def watch(*args: Any) -> Any:
        try:
            return launch(*args)
        except RuntimeError:
            clean.append(bool((decoder.outputs.allowed == -1).all()))
            raise

    monkeypatch.setattr(decoder, "play", fail)
    monkeypatch.setattr(core._runner, "launch", watch)
    found = run(core, requests)
    assert played[0] > 10
    assert clean == [True, True]
    assert (decoder.outputs.allowed == -1).all()
    for name, result in found.items():
        assert result.tokens == wanted[name].tokens
        assert result.last.grammar == wanted[name].last.grammar


@pytest.mark.parametrize("way", WAYS)
def test_masks_that_cannot_be_applied_fail_nobody_who_can_be_tried_alone(
    way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [asking("a", **SAMPLED), asking("b", at=1, logprobs=1), free("free")]
    wanted = run(engine(), requests)
    core, fill, calls = engine(**way), Masks.among, [0]

    def fail(self: Masks, leaders: Any) -> Any:
        calls[0] += 1
        if calls[0] in (1, 4):
            raise RuntimeError("no memory")
        return fill(self, leaders)

    monkeypatch.setattr(Masks, "among", fail)
    found = run(core, requests)
    assert {n: r.tokens for n, r in found.items()} == {n: r.tokens for n, r in wanted.items()}


@pytest.mark.parametrize("what", ["fill", "accept"])
@pytest.mark.parametrize("way", WAYS)
def test_a_grammar_that_gives_up_ends_its_own_sequence(
    way: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [asking("bad", **SAMPLED), asking("good", at=1), free("free")]
    wanted = run(engine(), requests)
    core = engine(**way)
    for request in requests:
        core.submit(request)
    core._grammars.wait(None)
    core.step()
    bad = core._sequences["bad"].grammar.matcher
    inner, left = getattr(bad, what), [4 if what == "fill" else 3]

    def give_up(given: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise GrammarFailed("The grammar is too complex.")
        return inner(given)

    monkeypatch.setattr(bad, what, give_up)
    found: dict[str, list[int]] = {name: [] for name in wanted}
    ends: dict[str, EngineOutput] = {}
    # The first step's outputs were dropped, or with overlap there were none.
    while core.busy:
        for output in core.step():
            found[output.request_id] += output.tokens
            if output.finish_reason:
                ends[output.request_id] = output
    assert ends["bad"].finish_reason is FinishReason.ERROR
    assert (ends["bad"].failure, ends["bad"].error) == (
        Failure.GRAMMAR_FAILED,
        "The grammar is too complex.",
    )
    assert 0 < len(found["bad"]) < len(wanted["bad"].tokens)
    for name in ("good", "free"):
        skipped = 0 if way.get("overlap") else 1
        assert found[name] == wanted[name].tokens[skipped:]
        assert ends[name].failure is None


def test_only_masked_rows_travel_and_two_stages_more_are_played(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = engine(**AS_ON_A_GPU)
    sent: list[tuple[int, ...]] = []
    masking = core._runner._decoder._masks
    send = masking.send
    monkeypatch.setattr(
        masking, "send", lambda masks, rows: (sent.append(masks.bits.shape), send(masks, rows))
    )
    names = [free(f"f{n}", 12, n) for n in range(5)]
    requests = [*names[:2], asking("a", "[ab]{5}"), *names[2:], asking("b", "[ab]{3}", 1)]
    run(core, requests)
    words = -(-tiny.VOCABULARY // 32)
    # The first tokens come of the prompts' step, and behind its end nothing of a row is masked.
    assert set(sent) == {(2, words), (1, words)}
    assert len(sent) <= 5
    for stage in ("masks", "masked rows"):
        assert sum(f.count for f in core._runner.forms() if f.stage == stage) == len(sent)


def calls_of(work: Callable[[], Any]) -> int:
    """How many functions are called, of Python and of C."""
    count = 0

    def note(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("way", WAYS)
def test_steps_without_grammars_call_what_they_call_in_an_engine_that_knows_none(
    way: dict[str, Any],
) -> None:
    found = []
    for vocabulary in (None, held.vocabulary()):
        core = core_with("llama", vocabulary, **way)
        if vocabulary is not None:
            run(core, [asking("before")])
        else:
            run(core, [free("before", 12)])
        for number in range(4):
            core.submit(free(f"{number}", 30, number, temperature=0.9, seed=number))
        steps(core, 6)
        found.append([calls_of(core.step) for _ in range(8)])
    assert found[0] == found[1]


@pytest.mark.parametrize("way", WAYS)
def test_traces_see_the_model_s_own(way: dict[str, Any]) -> None:
    """The entropy of a position is that of all tokens, whatever may follow."""
    request = asking("r", **SAMPLED)
    answer = run(engine(**way), [request])["r"].tokens
    rows = (len(request.tokens) - 1, len(request.tokens) + len(answer) - 1)
    trace = Trace((EntropyReading(name="e", rows=rows),))
    found = run(engine(**way), [replace(request, trace=trace)])["r"]
    assert found.tokens == answer
    forced = replace(
        request,
        grammar=None,
        trace=trace,
        sampling=replace(request.sampling, forced=tuple(answer), max_tokens=len(answer)),
    )
    plain = run(engine(**way), [forced])["r"]
    for name, array in plain.trace.items():
        torch.testing.assert_close(torch.tensor(found.trace[name]), torch.tensor(array))
    assert text_of(answer)
