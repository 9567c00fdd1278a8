"""ACT through the engine equals its formula written out in eager float64 attention.

The oracle recomputes the whole sequence for every token. Its prompt rows see the sinks of the whole
prompt, each generated row those of all rows up to it, exactly as the method says.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import parse_rows
from saccade_interventions.registry import Registry
from saccade_interventions.rules import HeadSinkRule
from saccade_kernels.controls import ControlShape
from saccade_kernels.tables import PerHeadTable
from saccade_server.engine.request import FinishReason
from saccade_server.engine.tables import DeviceTables
from saccade_server.models import head_sinks
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, core_with, make_request, plan_for, run
from saccade_testing.formulas import act_rows
from saccade_testing.oracle import Edit, Oracle, check

STEPS = 7
HEADS = {"1": [0, 3], "2": [1, 2, 3]}
Sites = dict[int, list[int]]
Residuals = dict[int, torch.Tensor]


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


def attention_of(prompt: Any, sites: Sites, **settings: Any) -> Edit:
    before = settings.pop("before", None)

    def edit(layer: int, scores: torch.Tensor, _: Residuals) -> torch.Tensor:
        if before is not None:
            scores = before(layer, scores)
        weights = scores.softmax(-1)
        for head in sites.get(layer, ()):
            weights[head] = act_rows(weights[head], len(prompt.tokens), **settings)
        return weights

    return edit


def sites_of(heads: dict[str, list[int]]) -> Sites:
    return {int(layer): chosen for layer, chosen in heads.items()}


def entry(**options: Any) -> dict[str, Any]:
    """Thresholds that tiny models with nearly uniform attention do reach."""
    return {"method": "act", "heads": HEADS, "theta": 0.06, "beta": 0.2, **options}


def own(prompt: Any, name: str, plan: Any, steps: int = STEPS) -> Any:
    return make_request(prompt, name, plan, steps, logprobs=1, ignore_eos=True)


def test_the_method(family: str, make_core: MakeCore) -> None:
    core = make_core(family)
    prompt = tiny.prompt(family, seed=1)
    plan = plan_for(core, prompt, [entry()])
    result = run(core, [own(prompt, "r", plan)])["r"]
    settings = {"theta": 0.06, "beta": 0.2}
    edit = attention_of(prompt, sites_of(HEADS), **settings)
    wanted = Oracle(tiny.build(family), edit).run(prompt, STEPS)
    check(result, wanted)
    plain = Oracle(tiny.build(family), attention_of(prompt, {})).run(prompt, STEPS)
    difference = max(abs(a[1] - b[1]) for a, b in zip(wanted, plain, strict=True))
    assert difference > 1e-4, "the case does not show the method"
    moved = {(site.layer, site.head) for site in result.last.receipt.moved}
    assert moved
    assert moved <= {(layer, head) for layer, heads in sites_of(HEADS).items() for head in heads}


OPTIONS = {
    "relative": ({"mode": "relative", "alpha": 1.5}, {"relative": True, "theta": 1.5}),
    "row": ({"decode": "row"}, {"decode": "row"}),
    "frozen": ({"decode": "frozen"}, {"decode": "frozen"}),
    "off": ({"decode": "off"}, {"decode": "off"}),
    "first found": ({"spare": "first_found"}, {"first_found": True}),
    "not initial": ({"receivers": "not_initial"}, {"spare_receiver": True}),
    "soon": ({"least_rows": 1}, {"least": 1}),
    "nothing kept": ({"beta": 0.0}, {"beta": 0.0}),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str) -> None:
    options, settings = OPTIONS[case]
    core = core_with("qwen3", overlap=True, padded_decode=True)
    prompt = tiny.prompt("qwen3", seed=3, text=19)
    plan = plan_for(core, prompt, [entry(**options)])
    result = run(core, [own(prompt, "r", plan)])["r"]
    edit = attention_of(prompt, sites_of(HEADS), **{"theta": 0.06, "beta": 0.2, **settings})
    check(result, Oracle(tiny.build("qwen3"), edit).run(prompt, STEPS))


def test_beside_a_score_edit_of_the_same_heads(make_core: MakeCore) -> None:
    """PASTA's bias goes by the tags, the masses by what each head found in the biased attention."""
    core = make_core("llama")
    prompt = tiny.prompt("llama", seed=2, text=33)
    pasta = {"method": "pasta", "spans": [[5, 12]], "layers": [1, 2], "alpha": 0.2}
    plan = plan_for(
        core, prompt, [pasta, entry(), {"method": "head_scale", "gain": 1.5, "layers": [1]}]
    )

    def biased(layer: int, scores: torch.Tensor) -> torch.Tensor:
        keys = torch.arange(scores.shape[2])
        outside = (keys < len(prompt.tokens)) & ~((keys >= 5) & (keys < 12))
        return scores + outside * float(np.log(0.2)) if layer in (1, 2) else scores

    calibrated = attention_of(prompt, sites_of(HEADS), theta=0.06, beta=0.2, before=biased)

    def edit(layer: int, scores: torch.Tensor, residuals: Residuals) -> torch.Tensor:
        return calibrated(layer, scores, residuals) * (1.5 if layer == 1 else 1.0)

    result = run(core, [own(prompt, "r", plan)])["r"]
    check(result, Oracle(tiny.build("llama"), edit).run(prompt, STEPS))


@pytest.mark.parametrize("decode", ["running", "row"])
def test_beside_recent_keys_of_the_same_heads(decode: str, make_core: MakeCore) -> None:
    """LocoRE's window moves row by row; ACT finds and moves masses of what it leaves."""
    core = make_core("llama")
    prompt = tiny.prompt("llama", seed=2, text=33)
    heads, length = {"0": [1, 3], "2": [0, 2]}, len(prompt.tokens)
    settings = {"theta": 0.06, "beta": 0.1, "decode": decode}
    locore = {"method": "locore", "beta": 3.0, "layers": [0, 1, 2, 3]}
    plan = plan_for(core, prompt, [{"method": "act", "heads": heads, **settings}, locore])

    def biased(layer: int, scores: torch.Tensor) -> torch.Tensor:
        rows, keys = torch.arange(scores.shape[1])[:, None], torch.arange(scores.shape[2])
        recent = (rows >= length) & (keys >= length) & (keys < rows) & (rows - keys <= 5)
        return scores + recent * float(np.log(4.0))

    result = run(core, [own(prompt, "r", plan)])["r"]
    edit = attention_of(prompt, sites_of(heads), before=biased, **settings)
    check(result, Oracle(tiny.build("llama"), edit).run(prompt, STEPS))


def test_preemption(make_core: MakeCore) -> None:
    """The prompt is computed at once again, and every generated row by itself."""
    steps, prompts = 24, [tiny.prompt("llama", seed=seed, text=50) for seed in range(3)]
    roomy, tight = make_core("llama"), make_core("llama", cache_tokens=4 * 64)
    requests = [
        own(prompt, f"r{i}", plan_for(roomy, prompt, [entry()]), steps)
        for i, prompt in enumerate(prompts)
    ]
    alone = {r.request_id: run(roomy, [r])[r.request_id] for r in requests}
    together = run(tight, requests)
    assert tight.stats().preemptions > 0
    for name, result in together.items():
        assert result.tokens == alone[name].tokens
        found, wanted = (
            [entry.logprob for entry in some.logprobs] for some in (result, alone[name])
        )
        np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_rows_run_out(make_core: MakeCore) -> None:
    """A request waits for a place among the few; it is never run without its edit."""
    core = make_core("llama", max_per_head_classes=1)
    prompts = [tiny.prompt("llama", seed=seed, text=20) for seed in range(3)]
    requests = [
        own(prompt, f"r{i}", plan_for(core, prompt, [entry()])) for i, prompt in enumerate(prompts)
    ]
    alone = {r.request_id: run(core, [r])[r.request_id].tokens for r in requests}
    for request in requests:
        core.submit(request)
    running = []
    tokens: dict[str, list[int]] = {r.request_id: [] for r in requests}
    while core.busy:
        for output in core.step():
            tokens[output.request_id] += output.tokens
        running.append(core.stats().running)
    assert max(running) == 1
    assert tokens == alone


def test_a_step_that_fails_is_tried_again(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that the failed step had counted in some layers count once."""
    core = make_core("llama")
    prompt = tiny.prompt("llama", seed=1)
    request = own(prompt, "r", plan_for(core, prompt, [entry()]))
    wanted = run(core, [request])["r"]
    failed = []

    def fail_once(measure: type, rows: int) -> None:
        """In the third layer, which reads what the ones before have written."""
        real, layers = measure.before, []

        def before(self: Any, call: Any) -> None:
            layers.append(call.layer)
            if len(layers) > rows and call.layer == 2 and measure not in failed:
                failed.append(measure)
                raise RuntimeError("for the test")
            real(self, call)

        monkeypatch.setattr(measure, "before", before)

    fail_once(head_sinks.PromptSinks, 0)
    fail_once(head_sinks.DecodeSinks, 9)
    result = run(core, [request])["r"]
    assert failed == [head_sinks.PromptSinks, head_sinks.DecodeSinks]
    assert result.tokens == wanted.tokens
    assert [e.logprob for e in result.logprobs] == [e.logprob for e in wanted.logprobs]


def test_no_memory_for_the_table_fails_its_request_alone(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny.prompt("llama", seed=1)
    requests = [
        own(prompt, name, plan_for(make_core("llama"), prompt, entries))
        for name, entries in (("plain", []), ("act", [entry()]))
    ]
    wanted = {r.request_id: run(make_core("llama"), [r])[r.request_id].tokens for r in requests}
    core = make_core("llama")

    def fail(*sizes: Any) -> None:
        raise torch.OutOfMemoryError("for the test")

    with monkeypatch.context() as patch:
        patch.setattr(PerHeadTable, "allocate", fail)
        found = run(core, requests)
    assert found["plain"].tokens == wanted["plain"]
    assert found["act"].last.finish_reason is FinishReason.ERROR
    assert found["act"].tokens == []
    again = run(core, requests)
    assert {name: result.tokens for name, result in again.items()} == wanted


def test_what_a_prompt_of_one_token_gets(make_core: MakeCore) -> None:
    core = make_core("llama")
    prompt = replace(tiny.prompt("llama", seed=1), tokens=tiny.prompt("llama", seed=1).tokens[:1])
    plan = plan_for(core, prompt, [entry(least_rows=1)])
    result = run(core, [own(prompt, "r", plan)])["r"]
    edit = attention_of(prompt, sites_of(HEADS), theta=0.06, beta=0.2, least=1)
    check(result, Oracle(tiny.build("llama"), edit).run(prompt, STEPS))


def test_a_row_that_is_handed_on_forgets_its_heads() -> None:
    """Whoever gets the tag row next has the classes of its tags, whatever its neighbours have."""
    tables = DeviceTables(
        ControlShape(4, 4, 8), 5, 5, 32, torch.device("cpu"), hidden_size=8, per_head_rows=3
    )
    facts = ModelFacts(4, 4, 2, 8, 32)
    context = Context(facts, Prompt(length=9))
    entries = [entry(receivers="not_initial")]
    plan = compile_plan(Registry.discover().parse(entries), context)
    tables.open_tags(2, plan)
    assert tables.tags.per_head is None, "nothing is spent before somebody asks"
    tables.open_per_head(1, 2, plan)
    found = tables.tags.per_head
    assert found.rows.tolist() == [0, 0, 1, 0, 0]
    assert found.heads[1].nonzero().tolist() == [[1, 0], [1, 3], [2, 1], [2, 2], [2, 3]]
    assert not found.heads[0].any()
    assert tables.classes([2]) == 3
    tables.open_tags(2, plan)
    assert tables.tags.per_head.rows.tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("rows", ["question+last", "last", "generated"])
def test_a_rule_whose_rows_are_not_all_edited(rows: str, make_core: MakeCore) -> None:
    """As a plug-in may have one: nothing is found for rows that no edit reads."""
    prompt = tiny.prompt("llava", images=1, seed=2)
    start = prompt.images[0].start + prompt.images[0].length
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), start)
    sites = ((1, (0, 2)), (2, (1,)))
    builder.per_head_mass(sites, [(0, 1, 0.5), (1, 1, -0.5)], parse_rows(rows))
    builder.rule(HeadSinkRule(sites=sites, threshold=0.02))
    core = make_core("llava")
    result = run(core, [make_request(prompt, "r", builder.build(), 6)])["r"]
    assert result.last.finish_reason != "error", result.last.error
