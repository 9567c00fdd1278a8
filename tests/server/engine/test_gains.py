"""VHR in the engine against its algorithm written out; see vhr_oracle.py."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace as with_fields

from saccade_interventions.branches import deleted_plan
from saccade_interventions.edits import HeadEdit
from saccade_interventions.phases import Phase
from saccade_interventions.rules import MeasuredGains
from saccade_server.engine.rules.gains import describe_heads
from saccade_testing import formulas, tiny, vhr
from saccade_testing.engine import MakeCore, core_with, run
from saccade_testing.oracle import check
from saccade_testing.vhr import ask

GOLDEN = Path(__file__).parents[2] / "interventions" / "golden"
VHR: dict[str, Any] = {"method": "vhr"}


@pytest.mark.parametrize(
    "options", [{}, {"rows": "last+generated", "gain": 3.0}], ids=["all", "last"]
)
@pytest.mark.parametrize("family", ["llava", "llava_next", "smolvlm", "qwen2_5_vl", "qwen3_vl"])
def test_the_algorithm_written_out(family: str, options: Any, make_core: MakeCore) -> None:
    """Two images, grouped heads, positions of the shortened prompt counted anew."""
    prompt = tiny.prompt(family, images=2, seed=1)
    oracle = vhr.Oracle(tiny.build(family), prompt, {**VHR, **options})
    oracle.measure()
    assert all(0 < len(heads) <= 2 for heads in oracle.chosen.values())
    result = run(make_core(family), [ask(prompt, [oracle.entry])])["r"]
    assert vhr.heads_of(result) == oracle.chosen
    check(result, oracle.run())


OPTIONS: dict[str, dict[str, Any]] = {
    "question": {"rows": "question+generated"},
    "generated": {"rows": "generated"},
    "prompt": {"rows": "prompt"},
    "last": {"rows": "last"},
    "hidden": {"without_image": "hidden"},
    "hidden last": {"without_image": "hidden", "rows": "last+generated"},
    "plain branch": {"branch_gains": False},
    "outliers too": {"drop_outliers": False},
    "population": {"std": "population"},
    "relative": {"relative": True},
    "one layer": {"layers": [2]},
    "weakened": {"gain": 0.3},
    "removed": {"gain": 0.0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str) -> None:
    prompt = tiny.prompt("qwen2_5_vl", images=1, seed=1)
    entry = {**VHR, "layers": [0, 1, 2, 3], **OPTIONS[name]}
    oracle = vhr.Oracle(tiny.build("qwen2_5_vl"), prompt, entry)
    oracle.measure()
    wanted = oracle.run()
    result = run(core_with("qwen2_5_vl"), [ask(prompt, [oracle.entry])])["r"]
    assert vhr.heads_of(result) == oracle.chosen
    check(result, wanted)
    plain = run(core_with("qwen2_5_vl"), [ask(prompt, [])])["r"]
    assert abs(plain.logprobs[-1].logprob - wanted[-1][1]) > 1e-3, "the option must matter"


def test_options_choose_differently() -> None:
    """Else the test above would not tell them apart."""
    prompt = tiny.prompt("qwen2_5_vl", images=1, seed=1)
    found = []
    for name in ("hidden", "plain branch", "outliers too", "population", "relative", "generated"):
        entry = {"layers": [0, 1, 2, 3], **OPTIONS[name]}
        oracle = vhr.Oracle(tiny.build("qwen2_5_vl"), prompt, entry)
        oracle.measure()
        found.append(oracle.chosen)
    assert all(found.count(chosen) == 1 for chosen in found)


def pai(
    layer: int, scores: torch.Tensor, image: torch.Tensor, residual: torch.Tensor, length: int
) -> torch.Tensor:
    """PAI with alpha 0.7 in all rows and all layers but the first two."""
    if layer >= 2:
        scores = torch.where(image & scores.isfinite(), scores + 0.7 * scores.abs(), scores)
    return scores.softmax(-1)


PAI = {"method": "pai", "alpha": 0.7, "rows": "prompt+generated"}


@pytest.mark.parametrize("options", [{}, {"without_image": "hidden"}], ids=["deleted", "hidden"])
@pytest.mark.parametrize("order", [0, 1])
def test_with_pai(order: int, options: Any, make_core: MakeCore) -> None:
    """PAI acts in both prompts; in the one without the image it finds no key."""
    prompt = tiny.prompt("llava", images=2, seed=2)
    oracle = vhr.Oracle(tiny.build("llava"), prompt, {**VHR, **options}, pai)
    oracle.measure()
    entries = [oracle.entry, PAI] if order else [PAI, oracle.entry]
    result = run(make_core("llava"), [ask(prompt, entries)])["r"]
    assert vhr.heads_of(result) == oracle.chosen
    check(result, oracle.run())
    alone = run(make_core("llava"), [ask(prompt, [oracle.entry])])["r"]
    assert abs(alone.logprobs[0].logprob - result.logprobs[0].logprob) > 1e-3


def var(
    layer: int, scores: torch.Tensor, image: torch.Tensor, residual: torch.Tensor, length: int
) -> torch.Tensor:
    """VAR of the entry below, in its only layer; nothing to do where no image is seen."""
    weights = scores.softmax(-1).nan_to_num(0.0)
    if layer != 2 or not image.any():
        return weights
    first = int(image.nonzero().max()) + 1
    return formulas.var(weights, residual, image, length, first)[0]


VAR = {
    "method": "var",
    "tau": 1.0,
    "move_fraction": 0.6,
    "min_visual_mass": 0.02,
    "rho": 0.3,
    "sink_dims": [3, 11],
}


@pytest.mark.parametrize("options", [{}, {"without_image": "hidden"}], ids=["deleted", "hidden"])
def test_with_var(options: Any, make_core: MakeCore) -> None:
    """Sinks are found in both prompts; attention moves where the image is seen."""
    prompt = tiny.prompt("llava", images=2, seed=1)
    oracle = vhr.Oracle(tiny.build("llava"), prompt, {**VHR, **options}, var)
    oracle.measure()
    result = run(make_core("llava"), [ask(prompt, [VAR, oracle.entry])])["r"]
    assert vhr.heads_of(result) == oracle.chosen
    check(result, oracle.run())
    assert result.last.receipt.moved, "the case must exercise both"


def test_gains_multiply_other_gains(make_core: MakeCore) -> None:
    """Halved outputs are what is measured and amplified."""
    prompt = tiny.prompt("llava", images=1, seed=2)
    request = ask(prompt, [VHR])
    sites = tuple((layer, (0, 1, 2, 3)) for layer in range(4))
    halved = HeadEdit(sites, tuple(Phase), 0.5)
    plan = replace(request.plan, heads=(halved,))
    (branch,) = request.branches
    branch = with_fields(
        branch, plan=deleted_plan(plan, [(i.start, i.start + i.length) for i in prompt.images])
    )
    request = with_fields(request, plan=plan, branches=(branch,))

    class Halved(vhr.Oracle):
        def behind(self, layer: int, output: torch.Tensor) -> torch.Tensor:
            return super().behind(layer, 0.5 * output)

    oracle = Halved(tiny.build("llava"), prompt, VHR)
    oracle.measure()
    result = run(make_core("llava"), [request])["r"]
    assert vhr.heads_of(result) == oracle.chosen
    check(result, oracle.run())


def test_the_report(make_core: MakeCore) -> None:
    """VHD of all layers and T-VHD, of the model as it is when nothing is amplified."""
    prompt = tiny.prompt("llava", images=1, seed=2)
    entry = {**VHR, "gain": 1.0, "diagnose": 3}
    plain = run(make_core("llava"), [ask(prompt, [])])["r"]
    result = run(make_core("llava"), [ask(prompt, [entry])])["r"]
    assert result.logprobs == plain.logprobs
    (heads,) = result.last.receipt.findings
    assert heads.selected == ()
    oracle = vhr.Oracle(tiny.build("llava"), prompt, entry)
    with torch.no_grad():
        oracle.forward(list(prompt.tokens), gains=False)
        with_image = dict(oracle.seen)
        oracle.forward(oracle._bare(), gains=False, bare=True)
    vhd = torch.stack([(with_image[i] - oracle.seen[i]).norm(dim=-1) for i in range(4)])
    np.testing.assert_allclose(heads.divergence, vhd, atol=1e-5)
    assert heads.total == pytest.approx(sum(sum(sorted(row)[-3:]) for row in vhd.tolist()), 1e-5)


def test_the_sum_of_the_report_is_the_golden_one() -> None:
    arrays = np.load(GOLDEN / "vhr_ref_arrays.npz")
    most = json.loads((GOLDEN / "vhr_ref_arrays.json").read_text())["hyper"]["k"]
    rule = MeasuredGains(layers=(0,), gain=1.0, phases=(), report=most)
    found = describe_heads(rule, arrays["vhd"][None], arrays["selected"][None].astype(np.uint8))
    assert found.total == pytest.approx(float(arrays["t_vhd_top3"]), 1e-6)
    assert found.selected == ((0, tuple(np.flatnonzero(arrays["selected"]).tolist())),)


def test_the_report_beside_gains(make_core: MakeCore) -> None:
    """It looks at every layer, and changes nothing."""
    prompt = tiny.prompt("llava", images=1, seed=2)
    plain, shown = (
        run(make_core("llava"), [ask(prompt, [{**VHR, **options}])])["r"]
        for options in ({}, {"diagnose": 4})
    )
    assert shown.tokens == plain.tokens
    assert shown.logprobs == plain.logprobs
    (heads,), (without,) = (result.last.receipt.findings for result in (shown, plain))
    assert heads.selected == without.selected
    assert without.total is None
    assert all(value > 0 for row in heads.divergence for value in row)
