"""VHD of traces equals the distance of transformers' head outputs with and without the images."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from saccade_interventions.methods.vcd import VCD
from saccade_interventions.methods.vhr import VHR
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.traces.data import DivergenceReading, EntropyReading, Trace
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.requests.branches import traced_branch
from saccade_server.requests.errors import RequestError
from saccade_testing import steered, tiny
from saccade_testing.engine import REGISTRY, ask, core_with, make_request, run
from saccade_testing.readings import (
    SETTINGS,
    TOKENS,
    answer_rows,
    compared,
    core_for,
    head_outputs,
    prompts_of,
    rendered,
    with_trace,
)
from saccade_testing.tiny import TinyPrompt

LAYERS = (0, 1, 3)
GAINS = {(1, 0): 3.0, (2, 3): 3.0, (2, 1): 3.0}
ENTRY = {"method": "head_scale", "gain": 3, "heads": {"1": [0], "2": [3, 1]}}


def with_both(request: GenerateRequest, prompt: TinyPrompt) -> GenerateRequest:
    """With a reading of all of its answer, one of its end, and their branch."""
    rows = answer_rows(prompt)
    both = (
        DivergenceReading(name="vhd", rows=rows, layers=LAYERS),
        DivergenceReading(name="end", rows=(rows[1] - 2, rows[1]), layers=(2, 3)),
    )
    request = compared(request, prompt, both)
    return with_trace(request, *both, EntropyReading(name="entropy", rows=rows))


def wanted(
    prompt: TinyPrompt, tokens: list[int], family: str, gains: dict[tuple[int, int], float]
) -> np.ndarray[Any, Any]:
    """[rows, layers, heads], transformers placing the shortened prompt itself."""
    model = tiny.build(family)
    bare = dataclasses.replace(prompt, tokens=prompt.bare, images=())
    both = [head_outputs(model, some, tokens, gains) for some in (prompt, bare)]
    found: np.ndarray[Any, Any] = (both[0] - both[1]).norm(dim=-1).numpy()
    return found


def check(trace: dict[str, Any], found: np.ndarray[Any, Any], atol: float = 1e-9) -> None:
    assert found.max() > 0.1
    np.testing.assert_allclose(trace["vhd"], found[:, LAYERS], atol=atol)
    np.testing.assert_allclose(trace["end"], found[-2:, (2, 3)], atol=atol)


@pytest.mark.parametrize("setting", ["chunks", "as on a GPU"])
@pytest.mark.parametrize(
    "family", [name for name in tiny.IMAGE_FAMILIES if name not in tiny.TOWERS]
)
def test_divergence_of_every_family(family: str, setting: str) -> None:
    """Images in tiles and several, whose names go too; beside one that compares nothing."""
    prompts = prompts_of(family)
    core = core_for(setting, prompts, family)
    request = make_request(prompts[0], "r", max_tokens=TOKENS, ignore_eos=True)
    other = make_request(prompts[1], "other", max_tokens=TOKENS, ignore_eos=True)
    result = run(core, [with_both(request, prompts[0]), other])["r"]
    check(result.trace, wanted(prompts[0], result.tokens, family, {}))
    assert len(result.trace["entropy"]) == TOKENS


@pytest.mark.parametrize("setting", SETTINGS)
def test_edits_act_in_both(setting: str) -> None:
    """A gain of heads, in the leader and in its branch; beside a plain one of each kind."""
    prompts = prompts_of("llava", 3)
    core = core_for(setting, prompts, "llava")
    plan = steered.plan_for(core, prompts[0], [{**ENTRY, "rows": "last+generated"}])
    requests = [
        with_both(make_request(prompt, str(n), some, TOKENS, ignore_eos=True), prompt)
        for n, (prompt, some) in enumerate(zip(prompts[:2], (plan, None), strict=True))
    ]
    requests.append(make_request(prompts[2], "2", max_tokens=TOKENS))
    results = run(core, requests)
    assert (core.stats().preemptions > 0) == (setting == "preempted")
    for n, gains in enumerate((GAINS, {})):
        result = results[str(n)]
        found = wanted(prompts[n], result.tokens, "llava", gains)
        check(result.trace, found, atol=1e-6)  # tables hold float32


@pytest.mark.parametrize("setting", ["as it comes", "padded"])
def test_rules_find_their_own_branches(setting: str) -> None:
    """Contrast with a noised image, and gains measured without it: tokens are the same."""
    prompt = tiny.prompt("llava", seed=1)
    for methods in ([VCD()], [VHR(layers=[1, 2])]):
        request = ask(prompt, methods, max_tokens=TOKENS, logprobs=1)
        plain = run(core_with("llava", **SETTINGS[setting]), [request])["r"]
        result = run(core_with("llava", **SETTINGS[setting]), [with_both(request, prompt)])["r"]
        assert (result.tokens, result.logprobs) == (plain.tokens, plain.logprobs)
        assert result.trace["vhd"].shape == (TOKENS, len(LAYERS), 4)


def test_vhr_finds_what_the_first_row_tells() -> None:
    """The numbers of its receipt, as far up as the branch of a trace, which nothing is measured
    for, is the same."""
    prompt = tiny.prompt("llava", seed=1)
    methods = [VHR(layers=[1, 2], diagnose=1)]
    request = with_both(ask(prompt, methods, max_tokens=TOKENS), prompt)
    result = run(core_with("llava"), [request])["r"]
    assert result.last is not None
    assert result.last.receipt is not None
    (found,) = result.last.receipt.findings
    told = np.array(found.divergence)[list(LAYERS[:2])]
    np.testing.assert_allclose(result.trace["vhd"][0, :2], told, atol=1e-5)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_neighbour_notices_nothing(setting: str) -> None:
    """Nor does the request itself."""

    def crowd(reads: bool) -> dict[str, Any]:
        other, prompt = prompts_of("llava", 2)
        core = core_for(setting, [other, other, prompt], "llava")
        request = make_request(other, "other", None, TOKENS, ignore_eos=True, logprobs=2)
        requests = [
            with_both(request, other) if reads else request,
            make_request(prompt, "r", None, 8, ignore_eos=True, logprobs=2),
        ]
        return {n: (r.tokens, r.logprobs) for n, r in run(core, requests).items()}

    assert crowd(True) == crowd(False)


@pytest.mark.parametrize(
    "words",
    [
        "asks for, or the trace",
        "no reading of the branch",
        "rows that tokens are drawn",
        "no layers",
    ],
)
def test_what_cannot_be_compared_is_refused(words: str) -> None:
    core, prompt = core_with("llava"), tiny.prompt("llava")
    request = with_both(make_request(prompt, max_tokens=TOKENS), prompt)
    assert request.trace is not None
    vhd, *others = request.trace.readings
    changed = {
        "asks for, or the trace": replace(request, branches=()),
        "no reading of the branch": with_trace(request, replace(vhd, layers=(1,)), *others),
        "rows that tokens are drawn": with_trace(
            request, replace(vhd, rows=(1, vhd.rows[1])), *others
        ),
        "no layers": with_trace(request, replace(vhd, layers=()), *others),
    }
    output = core.submit(changed[words])
    assert output is not None
    assert words in (output.error or "")


def test_a_row_that_runs_twice_is_not_compared() -> None:
    """AdaptVis tries the last prompt row first; a branch has run it by then."""
    core, prompt = core_with("llava"), tiny.prompt("llava")
    plain = with_both(make_request(prompt, max_tokens=TOKENS), prompt)
    unsure = REGISTRY.parse([{"method": "adaptvis", "threshold": 0.99}])
    plan = ask(prompt, unsure, max_tokens=TOKENS).plan
    output = core.submit(replace(plain, plan=plan))
    assert output is not None
    assert "runs the last prompt row twice" in (output.error or "")
    with pytest.raises(RequestError, match="runs the last row of the prompt twice"):
        with_both(make_request(prompt, plan=plan, max_tokens=TOKENS), prompt)


def test_the_branch_of_a_trace_is_the_last() -> None:
    core, prompt = core_with("llava"), tiny.prompt("llava")
    request = with_both(ask(prompt, [VCD()], max_tokens=TOKENS), prompt)
    output = core.submit(replace(request, branches=request.branches[::-1]))
    assert output is not None
    assert "no branch goes with it" in (output.error or "")


def test_a_prompt_that_is_nothing_but_images_is_refused() -> None:
    view = PreparedImage("a", 0, 3, np.zeros((3, 4, 4), np.float32), None)
    shown = RenderedPrompt((7, 7, 7), "", (), (view,))
    reading = DivergenceReading(name="vhd", rows=(2, 4), layers=(1,))
    with pytest.raises(ValueError, match="without its images the prompt is empty"):
        traced_branch(None, shown, [reading])


def test_the_branch_reads_the_rows_that_go_with_the_leader_s() -> None:
    prompt = tiny.prompt("smolvlm")
    reading = DivergenceReading(name="vhd", rows=answer_rows(prompt), layers=(1,))
    branch = traced_branch(None, rendered(prompt), [reading])
    assert branch.tokens == prompt.bare
    rows = len(prompt.bare) - 1, len(prompt.bare) - 1 + TOKENS
    assert branch.trace == Trace((replace(reading, rows=rows),))
