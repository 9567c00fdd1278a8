"""The self-test at start: what it lets through on the demo model, and what it catches."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from msgspec.structs import replace as replaced

from saccade_interventions.base import Intervention, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.registry import Registry
from saccade_interventions.rules import HeadSinkRule
from saccade_kernels.controls import Edit
from saccade_kernels.packed import PackedProgram
from saccade_kernels.residual import SiteKind
from saccade_server.config import engine_config
from saccade_server.engine.load import load_core
from saccade_server.engine.local import LocalEngine
from saccade_server.engine.request import TokenLogprobs
from saccade_server.models.folder import UnsupportedModelError
from saccade_server.models.prompt import PromptProcessor
from saccade_server.models.sites import Sites
from saccade_server.selftest import Findings, examine, unchanging

EVERYWHERE = (Phase.LAST, Phase.GENERATED)


class Made(Intervention):
    """A method whose whole prompt is one class; ``bias`` moves it against what is generated."""

    title: ClassVar[str] = "made up"
    summary: ClassVar[str] = "made up"
    paper: ClassVar[str] = "none"
    level: ClassVar[Level] = "attention_score"
    strength: float = 1.0

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        return Probe({"method": cls.method_id()})

    def compile(self, context: Context) -> Plan:
        plan = context.plan()
        half = plan.tag([(0, context.prompt.length // 2)])
        heads = tuple(range(context.model.heads))
        sites = tuple((layer, heads) for layer in range(context.model.layers))
        plan.score(sites, [half], EVERYWHERE, bias=self.bias())
        return self.finish(plan.build(), context)

    def bias(self) -> float:
        return -5 * self.strength

    def finish(self, plan: Plan, context: Context) -> Plan:
        return plan


class Good(Made):
    method: Literal["good"] = "good"
    neutral: ClassVar[dict[str, Any] | None] = {"strength": 0}


class Idle(Made):
    method: Literal["idle"] = "idle"

    def bias(self) -> float:
        return 0.0


class Feeble(Made):
    method: Literal["feeble"] = "feeble"

    def bias(self) -> float:
        return 1e-9


class NotNeutral(Made):
    method: Literal["not_neutral"] = "not_neutral"
    neutral: ClassVar[dict[str, Any] | None] = {"strength": 0.5}


class NearlyNeutral(Made):
    method: Literal["nearly_neutral"] = "nearly_neutral"
    neutral: ClassVar[dict[str, Any] | None] = {"strength": 1e-6}


class NeverRejects(Made):
    method: Literal["never_rejects"] = "never_rejects"
    level: ClassVar[Level] = "sampling"

    def bias(self) -> float:
        return 1e-9


class Refuses(Made):
    method: Literal["refuses"] = "refuses"

    def finish(self, plan: Plan, context: Context) -> Plan:
        raise InterventionError(Code.INVALID_PARAMS, "not on a Friday")


class Homeless(Made):
    method: Literal["homeless"] = "homeless"

    def finish(self, plan: Plan, context: Context) -> Plan:
        context.artifact("sha256:" + "0" * 64, "heads")
        return plan


class Foreign(Made):
    method: Literal["foreign"] = "foreign"

    def finish(self, plan: Plan, context: Context) -> Plan:
        return replace(plan, shape=replace(plan.shape, layers=plan.shape.layers + 1))


class Unheard(Made):
    """On models that were not there when its package was loaded."""

    method: Literal["unheard"] = "unheard"

    def finish(self, plan: Plan, context: Context) -> Plan:
        kind: Any = type("OfItsOwn", (HeadSinkRule,), {}, frozen=True)
        return replace(plan, rules=(kind(sites=((0, (0,)),), threshold=0.1),))


class NotForThis(Made):
    method: Literal["not_for_this"] = "not_for_this"

    @classmethod
    def unsupported(cls, model: ModelFacts) -> str | None:
        return "never"


CAUGHT = {
    Idle: "its probe changes nothing",
    Feeble: "did not change the model's log-probabilities",
    NotNeutral: "not bit-identical",
    NearlyNeutral: "not bit-identical",
    NeverRejects: "rejected no candidate",
    Refuses: "not on a Friday",
    Homeless: "no artifact",
    Foreign: "engine failed",
    Unheard: "brings a rule of its own",
}


@pytest.fixture(scope="module")
def core() -> Any:
    return load_core(engine_config(device="cpu", cache_tokens=8192, max_num_seqs=4))


@pytest.fixture
def unwritten(core: Any) -> Iterator[Any]:
    """The engine with no program left in its tables, before the test and behind it."""
    rows = core._scheduler.rows
    for row in list(rows._idle):
        rows._give_up(row)
    yield core
    for row in list(rows._idle):
        rows._give_up(row)


def tried(core: Any, registry: Registry, **info: Any) -> Mapping[str, str]:
    """The faults that the demo model's engine shows; ``info`` is what it claims of itself."""
    return found(core, registry, **info).faults


def found(core: Any, registry: Registry, seconds: float | None = None, **info: Any) -> Findings:
    """What the self-test says of the demo model's engine."""

    async def main() -> Findings:
        engine = LocalEngine(core)
        try:
            if info:
                engine._info = replaced(engine.info, **info)
            prompts = PromptProcessor.load(engine_config(device="cpu").model)
            return await examine(engine, prompts, registry, seconds)
        finally:
            await engine.close()

    return asyncio.run(main())


def test_every_method_passes_on_the_demo_model(core: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "saccade.selftest"):
        assert tried(core, registry := Registry.discover()) == {}
    assert "methods passed" in caplog.text
    assert all(f"self-test: {name}, " in caplog.text for name in registry.methods)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_what_does_not_show_is_caught_and_logged(
    core: Any, caplog: pytest.LogCaptureFixture
) -> None:
    faults = tried(core, Registry([Good, NotForThis, *CAUGHT]))
    assert faults.keys() == {kind.method_id() for kind in CAUGHT}
    for kind, words in CAUGHT.items():
        assert words in faults[kind.method_id()]
        assert f"{kind.method_id()} is not offered" in caplog.text


def test_without_room_for_the_prompt_nothing_is_offered(core: Any) -> None:
    faults = tried(core, Registry([Good, NotForThis]), max_model_len=40)
    assert faults.keys() == {"good"}
    assert "longer than the server allows" in faults["good"]


class TooWide(Made):
    """It needs its prompt in one step, which has too few tokens for this one."""

    method: Literal["too_wide"] = "too_wide"

    def finish(self, plan: Plan, context: Context) -> Plan:
        sites = ((0, (0, 1)),)
        return plan.with_rules(HeadSinkRule(sites, 0.1))


def test_a_prompt_too_long_for_a_method_is_no_fault_of_the_method(
    core: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "saccade.selftest"):
        assert tried(core, Registry([Good, TooWide]), max_batched_tokens=64) == {}
        assert "offered untested: too_wide: the prompt must be computed in one" in caplog.text
        assert "1 of 2 methods passed" in caplog.text


def test_what_the_time_does_not_suffice_for_is_offered_untested(
    core: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle fails before the time is over; Slow takes too long, and Feeble is not come to."""
    submit = LocalEngine.submit

    async def delayed(engine: LocalEngine, request: Any) -> Any:
        if request.plan is not None and "slow" in slow:
            await asyncio.sleep(60)
        async for output in submit(engine, request):
            yield output

    slow: list[str] = []

    class Slow(Good):
        method: Literal["slow"] = "slow"  # type: ignore[assignment]

        def finish(self, plan: Plan, context: Context) -> Plan:
            slow.append("slow")
            return plan

    class Zealous(Feeble):
        method: Literal["zealous"] = "zealous"  # type: ignore[assignment]

    monkeypatch.setattr(LocalEngine, "submit", delayed)
    with caplog.at_level("INFO", "saccade.selftest"):
        outcome = found(core, Registry([Good, Idle, Slow, Zealous]), seconds=5)
    assert outcome.faults.keys() == {"idle"}
    assert outcome.untested.keys() == {"slow", "zealous"}
    assert outcome.tested == {"good"}
    assert "offered untested: slow, zealous: the 5 s of the self-test were over" in caplog.text
    assert "1 of 4 methods passed" in caplog.text
    assert "slow, 3 of 4" in caplog.text
    assert "zealous, 4 of 4" not in caplog.text, "it was not come to"


def test_the_model_itself_is_tested_however_short_the_time(
    core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(core, Registry([Good]), seconds=0).untested.keys() == {"good"}
    logits = type(core._runner.model).logits

    def broken(model: Any, hidden: Any, invariant: bool) -> Any:
        return logits(model, hidden) * float("nan")

    monkeypatch.setattr(type(core._runner.model), "logits", broken)
    with pytest.raises(UnsupportedModelError):
        found(core, Registry([Good]), seconds=0)


def test_act_is_offered_where_steps_are_short(core: Any) -> None:
    act = Registry([Registry.discover().methods["act"]])
    assert tried(core, act, max_batched_tokens=64) == {}


def test_without_table_rows_a_method_is_not_offered(core: Any) -> None:
    """A shorter prompt would not help it."""
    assert tried(core, Registry([Good, TooWide]), max_per_head_classes=0).keys() == {"too_wide"}


def test_the_plan_that_changes_nothing_takes_the_edited_path(core: Any) -> None:
    facts = ModelFacts(layers=2, heads=4, kv_heads=2, head_dim=16, hidden_size=64)
    plan = unchanging(facts, 9)
    for phase in Phase:
        assert (plan.program(phase).head_edits() == Edit.SCORE | Edit.MASS).all()
    assert len({(edit.site, edit.layer) for edit in plan.residuals}) == 7


@pytest.mark.parametrize("kind", [SiteKind.ATTENTION_OUTPUT, SiteKind.MLP_OUTPUT])
def test_a_site_where_nothing_happens_is_caught(
    kind: SiteKind, core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = Sites.act

    def pass_on(sites: Sites, where: SiteKind, *rest: Any, **more: Any) -> Any:
        found = act(sites, where, *rest, **more)
        return rest[1:] if where is kind else found

    monkeypatch.setattr(Sites, "act", pass_on)
    steering = Registry([Registry.discover().methods["steering"]])
    reason = tried(core, steering)["steering"]
    assert reason.startswith("it did not change")
    assert kind.name.lower() in reason


def test_edited_rows_that_differ_from_plain_ones_are_caught(
    unwritten: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No method can be judged by its neutral strength then: that would be the plain path."""
    tables = unwritten._runner.tables
    write = tables.write_program

    def write_louder(row: int, program: PackedProgram) -> None:
        write(row, replace(program, gain=program.gain * 1.5))

    monkeypatch.setattr(tables, "write_program", write_louder)
    faults = tried(unwritten, Registry([Good]))
    assert "edits that change nothing change its log-probabilities" in faults["good"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_plain_answer_that_is_no_number_stops_the_server(
    value: float, core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only no method is offered: there is nothing to serve."""
    logits = type(core._runner.model).logits

    def broken(model: Any, hidden: Any, invariant: bool) -> Any:
        found = logits(model, hidden)
        found[:, 7] = value
        return found

    monkeypatch.setattr(type(core._runner.model), "logits", broken)
    with pytest.raises(UnsupportedModelError, match="not made of finite numbers in float32"):
        tried(core, Registry([Good]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "edited"])
def test_log_probabilities_that_are_no_numbers_never_pass(
    plain: bool, value: float, core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = LocalEngine.submit

    async def changed(engine: LocalEngine, request: Any) -> Any:
        async for output in submit(engine, request):
            ours = request.plan is None if plain else request.plan and not request.plan.masses
            logprobs = output.logprobs
            if ours:
                logprobs = tuple(TokenLogprobs(e.token, value, e.top) for e in output.logprobs)
            yield replaced(output, logprobs=logprobs)

    monkeypatch.setattr(LocalEngine, "submit", changed)
    if plain:
        with pytest.raises(UnsupportedModelError, match="not made of finite numbers"):
            tried(core, Registry([Good]))
    else:
        assert "are no numbers" in tried(core, Registry([Good]))["good"]


def test_edits_under_which_logits_are_no_numbers_do_not_stop_the_server(
    unwritten: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = unwritten._runner.tables
    write = tables.write_program

    def write_nan(row: int, program: PackedProgram) -> None:
        write(row, replace(program, gain=program.gain * np.float32("nan")))

    monkeypatch.setattr(tables, "write_program", write_nan)
    assert "not finite" in tried(unwritten, Registry([Good]))["good"]


@pytest.mark.parametrize("name", sorted(Registry.discover().methods))
def test_each_method_says_how_it_is_tested(name: str) -> None:
    """A strength without which a method does nothing exists for all but a few."""
    kind = Registry.discover().methods[name]
    assert "probe" in vars(kind), "the example may be too weak to show on any model"
    if kind.neutral is None:
        assert name in WITHOUT_NEUTRAL
    else:
        assert kind.neutral.keys() <= kind.model_fields.keys()


WITHOUT_NEUTRAL = {"head_ablation"}
