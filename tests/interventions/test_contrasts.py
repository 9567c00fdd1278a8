"""VCD, PAI's contrast and DoLa as plans: worked examples, neutral strengths, edges.

What the engine makes of the rules is tested beside it, in tests/server/engine/test_contrast.py.
"""

import pytest
import torch

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.dola import DoLa
from saccade_interventions.methods.pai import PAI
from saccade_interventions.methods.pai_contrast import PAIContrast
from saccade_interventions.methods.vcd import VCD, kept
from saccade_interventions.plan import Plan
from saccade_interventions.registry import Registry
from saccade_interventions.rules import Branch, ContrastRule, EarlyExit
from saccade_testing.plans import context_of

PICTURE = Prompt(9, images=((1, 3), (5, 7)))
CLEAN = torch.tensor([2, 1.5, 0, -3], dtype=torch.float64)
OTHER = torch.tensor([1, 1.8, 0.2, -3], dtype=torch.float64)


def rule_of(method, context) -> ContrastRule:
    plan = method.compile(context)
    assert plan.rules == (plan.rule(ContrastRule),)
    assert not plan.edits
    return plan.rule(ContrastRule)


def scores(rule: ContrastRule) -> torch.Tensor:
    """What the rule means, on the specification's two distributions."""
    p, q = CLEAN.log_softmax(-1), OTHER.log_softmax(-1)
    d = rule.own * p - rule.other * q
    return d.masked_fill(p < p.max() + torch.tensor(rule.cutoff).log(), -torch.inf)


def test_the_diffusion_keeps_what_the_specification_says():
    assert kept(500) ** 0.5 == pytest.approx(0.863017, abs=1e-6)
    assert (1 - kept(500)) ** 0.5 == pytest.approx(0.505175, abs=1e-6)
    steps = [kept(step) for step in (0, 1, 250, 500, 999)]
    assert steps == sorted(steps, reverse=True)
    assert 1 - kept(0) == pytest.approx(2.234e-5, rel=1e-3)  # beta_0 alone: T counts from 0


def test_vcd():
    rule = rule_of(VCD(), context_of(PICTURE))
    expected = torch.tensor([0.829145, 0.137057, 0.033798, 0], dtype=torch.float64)
    torch.testing.assert_close(scores(rule).softmax(-1), expected, rtol=0, atol=1e-6)
    assert rule.branch.images == "noised"
    assert rule.branch.noise.kept == kept(500)
    assert (rule.branch.noise.seed, rule.branch.edited, rule.early) == (0, False, None)
    other = rule_of(VCD(noise_step=3, noise_seed=8, edit_branch=True), context_of(PICTURE))
    assert (other.branch.noise.kept, other.branch.noise.seed) == (kept(3), 8)
    assert other.branch.edited


def test_pai_contrast():
    rule = rule_of(PAIContrast(), context_of(PICTURE))
    expected = torch.tensor([-0.484051, -1.114051, -2.604051, -torch.inf], dtype=torch.float64)
    torch.testing.assert_close(scores(rule), expected, rtol=0, atol=1e-6)
    assert rule.branch == Branch("deleted")


@pytest.mark.parametrize(
    ("layers", "asked", "expected"),
    [
        (32, "low", range(0, 15, 2)),
        (32, "high", range(16, 31, 2)),
        (40, "low", range(0, 19, 2)),
        (40, "high", range(20, 39, 2)),
        (60, "low", range(0, 19, 2)),
        (60, "high", range(40, 59, 2)),
        (80, "high", range(60, 79, 2)),
        (30, "high", range(16, 29, 2)),
        (1, "low", [0]),
        (1, "high", [0]),
        (2, "high", [0]),
        (6, [5, 0, 3], [0, 3, 5]),
    ],
)
def test_dola_takes_layers_from_the_papers_buckets(layers, asked, expected):
    rule = rule_of(DoLa(layers=asked), context_of(Prompt(5), layers=layers))
    assert (rule.own, rule.other, rule.cutoff, rule.branch) == (1, 1, 0.1, None)
    assert rule.early == EarlyExit(tuple(expected), False, "dola")


def test_dola_options():
    method = DoLa(layers=[1], early_norm=True, divergence="jsd", relative_top=0.3, strength=0.5)
    rule = rule_of(method, context_of(Prompt(5)))
    assert rule == ContrastRule(1, 0.5, 0.3, early=EarlyExit((1,), True, "jsd"))
    assert DoLa(layers=[3, 1]).fingerprint() == DoLa(layers=[1, 3]).fingerprint()


@pytest.mark.parametrize(
    "method",
    [VCD(alpha=0, beta=0.9), PAIContrast(gamma=1, cutoff=0.9), DoLa(strength=0, relative_top=0.9)],
)
def test_no_strength_is_no_plan(method):
    assert compile_plan([method], context_of(PICTURE)) is None


@pytest.mark.parametrize("method", [VCD(), PAIContrast()])
@pytest.mark.parametrize(
    ("prompt", "facts", "code"),
    [
        (Prompt(5), {}, Code.REQUIRES_IMAGE),
        (Prompt(5), {"accepts_images": False}, Code.UNSUPPORTED_MODEL),
    ],
)
def test_no_image(method, prompt, facts, code):
    with pytest.raises(InterventionError) as refused:
        compile_plan([method], context_of(prompt, **facts))
    assert refused.value.code == code
    assert refused.value.param == "interventions[0]"


def test_a_layer_that_is_not_there():
    with pytest.raises(InterventionError) as refused:
        compile_plan([DoLa(layers=[0, 6])], context_of(Prompt(5)))
    assert refused.value.code == Code.LAYER_OUT_OF_RANGE
    assert refused.value.param == "interventions[0].layers[1]"


@pytest.mark.parametrize(
    ("entry", "param"),
    [
        ({"method": "vcd", "alpha": -0.1}, "alpha"),
        ({"method": "vcd", "alpha": 1e6}, "alpha"),
        ({"method": "vcd", "alpha": "1"}, "alpha"),
        ({"method": "vcd", "alpha": float("nan")}, "alpha"),
        ({"method": "vcd", "alpha": float("inf")}, "alpha"),
        ({"method": "vcd", "beta": 1.1}, "beta"),
        ({"method": "vcd", "noise_step": 1000}, "noise_step"),
        ({"method": "vcd", "noise_step": 1.5}, "noise_step"),
        ({"method": "vcd", "noise_seed": -1}, "noise_seed"),
        ({"method": "vcd", "noise_seed": 2**63}, "noise_seed"),
        ({"method": "vcd", "edit_branch": 1}, "edit_branch"),
        ({"method": "vcd", "cutoff": 0.1}, "cutoff"),
        ({"method": "pai_contrast", "gamma": 0.9}, "gamma"),
        ({"method": "pai_contrast", "gamma": float("-inf")}, "gamma"),
        ({"method": "pai_contrast", "cutoff": -1}, "cutoff"),
        ({"method": "dola", "layers": "middle"}, "layers"),
        ({"method": "dola", "layers": []}, "layers"),
        ({"method": "dola", "layers": [1, 1]}, "layers[1]"),
        ({"method": "dola", "layers": [-1]}, "layers[0]"),
        ({"method": "dola", "layers": 3}, "layers"),
        ({"method": "dola", "divergence": "kl"}, "divergence"),
        ({"method": "dola", "relative_top": 2}, "relative_top"),
    ],
)
def test_bad_inputs(registry: Registry, entry, param):
    with pytest.raises(InterventionError) as refused:
        registry.parse([entry])
    assert refused.value.status == 400
    assert refused.value.param == f"interventions[0].{param}"


def test_one_contrast_a_request_and_any_edits_beside_it():
    context = context_of(PICTURE)
    plan = compile_plan([PAI(), PAIContrast()], context)
    assert isinstance(plan, Plan)
    assert (plan.scores[0].source, plan.rule(ContrastRule).source) == (0, 1)
    with pytest.raises(InterventionError) as refused:
        compile_plan([VCD(), PAI(), DoLa()], context)
    assert refused.value.code == Code.CONFLICT
    assert refused.value.param == "interventions[2]"
    assert compile_plan([VCD(alpha=0), DoLa()], context).rule(ContrastRule).early is not None
