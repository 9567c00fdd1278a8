"""Edits that depend on the first token's confidence: the last prompt row runs twice."""

from typing import Any

import pytest
from msgspec import structs

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import ScoreEdit
from saccade_interventions.phases import Phase, parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import ConfidenceRule, SaliencyRule, SinkRule
from saccade_kernels.controls import ControlShape
from saccade_server.engine.core import EngineCore
from saccade_server.engine.rules.confidence import decided
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, core_with, make_request, run

SITES = tuple((layer, (0, 1, 2, 3)) for layer in range(4))


def plan_of(prompt: Any, threshold: float, *, kind: str = "") -> Plan:
    """Unsure halves the image scores of the last row, sure doubles them; ``kind`` adds to it."""
    question = max(i.start + i.length for i in prompt.images)
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), question)
    image = builder.tag([(i.start, i.start + i.length) for i in prompt.images])
    unsure, sure = (
        (ScoreEdit(SITES, (Phase.LAST,), (image,), scale=scale),) for scale in (-0.5, 1.0)
    )
    builder.rule(ConfidenceRule(threshold, unsure, sure))
    if kind == "edited":
        builder.score(SITES, [image], parse_rows("prompt+generated"), bias=1.0)
    elif kind == "sinks":
        sink = builder.new_class()
        builder.mass(SITES[1:3], [(sink, sink, -0.5), (image, sink, 0.5)], parse_rows("question"))
        builder.rule(SinkRule(0.8, (3, 11), (1, 2), ((image, sink), (0, sink))))
    elif kind == "saliency":
        builder.rule(SaliencyRule((1,), 5, 3, 0.9, 3, region="after_image", warmup=1))
    return builder.build()


def told(result: Any) -> Any:
    return result.tokens, result.logprobs, result.last.receipt.rows, result.last.receipt.counters


@pytest.mark.parametrize(
    ("found", "kind"),
    [("unsure", ""), ("sure", "edited"), ("unsure", "sinks"), ("sure", "saliency")],
)
def test_it_is_the_run_with_the_edits_that_were_chosen(
    found: str, kind: str, make_core: MakeCore
) -> None:
    """The same tokens, log-probabilities and rows as a request that asks for these edits itself."""
    prompt = tiny.prompt("llava", images=1, seed=1, text=60)
    plan = plan_of(prompt, {"unsure": 1.0, "sure": 0.0}[found], kind=kind)
    chosen = decided(plan, 0.5)
    assert chosen[0] == found
    request = make_request(prompt, "r", plan, 8, logprobs=2)
    result = run(make_core("llava"), [request])["r"]
    wanted = run(make_core("llava"), [structs.replace(request, plan=chosen[1])])["r"]
    assert (result.tokens, result.logprobs) == (wanted.tokens, wanted.logprobs)
    assert result.last.receipt.rows == wanted.last.receipt.rows
    assert result.last.receipt.rows["last"] == 1
    counters = {c.name: c.value for c in result.last.receipt.counters}
    expected = {c.name: c.value for c in wanted.last.receipt.counters}
    assert counters == {found: 1, **expected}
    other = decided(plan, -1.0 if found == "sure" else 2.0)[1]
    assert other.scores != chosen[1].scores or plan.rule(ConfidenceRule).threshold in (0.0, 1.0)


def test_the_probability_is_the_models_own_rounded_to_hundredths(make_core: MakeCore) -> None:
    """With other edits in force, whatever the sampling; at the threshold it is sure."""
    prompt = tiny.prompt("llava", images=1, seed=1)
    plan = plan_of(prompt, 0.5, kind="edited")
    without = plan.without_rules(ConfidenceRule)
    core = make_core("llava")
    first = run(core, [make_request(prompt, "r", without, 1, logprobs=1)])["r"].logprobs[0]
    rounded = round(2.718281828459045 ** first.top[0][1], 2)
    for threshold, found in ((rounded, "sure"), (rounded + 0.004, "unsure")):
        asked = plan_of(prompt, threshold, kind="edited")
        request = make_request(
            prompt, "r", asked, 1, temperature=1.9, top_k=1, logit_bias={20: 90.0}
        )
        (counter,) = run(core, [request])["r"].last.receipt.counters
        assert counter.name == found


def steps_of(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Tokens of the chunks of each step."""
    seen: list[list[int]] = []
    launch = core._runner.launch

    def note(chunks: Any, fill: Any) -> Any:
        seen.append([chunk.length for chunk in chunks])
        return launch(chunks, fill)

    monkeypatch.setattr(core._runner, "launch", note)
    return seen


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_it_costs_one_step_of_one_token(
    prefix_caching: bool, make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny.prompt("llava", images=1, seed=1)
    core = make_core("llava", prefix_caching=prefix_caching)
    seen = steps_of(core, monkeypatch)
    run(core, [make_request(prompt, "r", plan_of(prompt, 0.5), 3, ignore_eos=True)])
    assert seen == [[len(prompt.tokens)], [1], [1], [1]]
    assert core.stats().generated_tokens == 3


@pytest.mark.parametrize("behind", [0, 63])
def test_a_page_is_never_found_with_the_wrong_last_row(behind: int, make_core: MakeCore) -> None:
    """The prompt ends where a page does, or not; the same tokens run plain, unsure and sure."""
    base = tiny.prompt("llava", images=1, seed=1)
    filler = tuple(10 + i % 80 for i in range(128 + behind - len(base.tokens)))
    prompt = tiny.TinyPrompt(base.tokens + filler, base.images)
    longer = tiny.TinyPrompt((*prompt.tokens, *range(10, 90)), base.images)
    plans = {"plain": None, "unsure": plan_of(prompt, 1.0), "sure": plan_of(prompt, 0.0)}

    def asked(name: str) -> Any:
        return make_request(prompt, name, plans[name], 6, ignore_eos=True)

    wanted = {n: run(make_core("llava"), [asked(n)])[n].tokens for n in plans}
    follow = run(make_core("llava"), [make_request(longer, "x", None, 5)])["x"].tokens
    core = make_core("llava")
    for name in ("sure", "plain", "unsure", "sure"):
        assert run(core, [asked(name)])[name].tokens == wanted[name]
        assert run(core, [make_request(longer, "x", None, 5)])["x"].tokens == follow
    assert len({tuple(tokens) for tokens in wanted.values()}) == 3


FAST = {"overlap": True, "padded_decode": True}
LIMITS: dict[str, dict[str, int]] = {
    "chunked": {"max_batched_tokens": 20},
    "few pages, as on a GPU": {"cache_tokens": 64 * 5, **FAST},
    "few rows": {"max_programs": 4},
    "few rows, as on a GPU": {"max_programs": 4, **FAST},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_each_gets_in_a_batch_what_it_gets_alone(limits: dict[str, int]) -> None:
    """Also when pages or table rows run out between the two runs."""
    requests = []
    for index, text in enumerate((60, 40, 7)):
        prompt = tiny.prompt("llava", images=1, seed=index, text=text)
        for number, kind in enumerate(("edited", "", "plain")):
            plan = None if kind == "plain" else plan_of(prompt, index % 2, kind=kind)
            requests.append(make_request(prompt, f"{index}-{number}", plan, 12, ignore_eos=True))

    def known(result: Any) -> Any:
        receipt = result.last.receipt
        return result.tokens, None if receipt is None else (receipt.rows, receipt.counters)

    quiet = core_with("llava", prefix_caching=False)
    wanted = {r.request_id: known(run(quiet, [r])[r.request_id]) for r in requests}
    core = core_with("llava", **limits)
    for _ in range(2):
        found = run(core, requests)
        assert {name: known(result) for name, result in found.items()} == wanted
    assert core.stats().cache_usage == 0
    assert not core._scheduler.rows.programs


def test_rows_that_a_preempted_sequence_holds_come_back(make_core: MakeCore) -> None:
    """It needs a row more once it is decided, and waits in front of the one that has all four."""
    prompt = tiny.prompt("llava", images=1, seed=1, text=120)
    other = tiny.prompt("llava", images=1, seed=1, text=20)
    question = max(i.start + i.length for i in other.images)
    builder = PlanBuilder(ControlShape(4, 4, 16), len(other.tokens), question)
    image = builder.tag([(i.start, i.start + i.length) for i in other.images])
    for number, phase in enumerate(Phase):
        builder.score(SITES, [image], (phase,), bias=0.2 + 0.1 * number)
    requests = [
        make_request(prompt, "decided", plan_of(prompt, 0.5), 4, ignore_eos=True),
        make_request(other, "holder", builder.build(), 10, ignore_eos=True),
    ]
    wanted = {r.request_id: run(make_core("llava"), [r])[r.request_id].tokens for r in requests}
    few = {"max_programs": 4, "cache_tokens": 64 * 3, "max_batched_tokens": 32}
    core = make_core("llava", prefix_caching=False, **few)
    found = run(core, requests)
    assert {name: result.tokens for name, result in found.items()} == wanted
    assert core.stats().preemptions == 1


def test_an_abort_between_the_runs_leaves_nothing(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llava", images=1, seed=1)
    core = make_core("llava")
    request = make_request(prompt, "r", plan_of(prompt, 0.5), 5)
    wanted = run(core, [request])["r"].tokens
    for steps in (1, 2, 3):
        core.submit(request)
        for _ in range(steps):
            core.step()
        core.abort("r")
        assert core.stats().cache_usage == 0
        assert not core._scheduler.rows.programs
    assert run(core, [request])["r"].tokens == wanted
