"""LocoRE: the worked examples, the reference arrays, its rule, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.edits import TagRun
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.locore import LocoRE
from saccade_interventions.methods.pai import PAI
from saccade_interventions.methods.var import VAR
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.rules import RecentRule, SinkRule
from saccade_testing.plans import attend, context_of

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = {
    "literal": "out_literal",
    "renormalised": "out_renorm",
    "score": "out_logit_scale",
}


@pytest.fixture
def last_row():
    """The edited last row of scores [heads, keys]; the keys before it get their class by a tag."""

    def run(method, context, scores):
        plan, keys = method.compile(context), scores.shape[-1]
        ((_, recent),) = plan.rule(RecentRule).remap
        start = max(plan.rule(RecentRule).start, keys - 1 - plan.rule(RecentRule).width)
        seen = replace(plan, tags=(TagRun(start, keys - 1, recent),), prompt_length=keys - 1)
        square = scores[:, None].expand(-1, keys, -1)
        return attend(seen, square, layer=2, exact=True)[:, -1]

    return run


@pytest.fixture
def with_image():
    return context_of(Prompt(12, images=((3, 9),)))


ROW = [0.30, 0.20, 0.10, 0.15, 0.10, 0.15]
SCORES = [1, 0.5, -0.2, 0.3, -0.5, 0.1]


@pytest.mark.parametrize(
    ("variant", "after"),
    [
        ("literal", [0.30, 0.20, 0.10, 0.1725, 0.115, 0.15]),
        (
            "renormalised",
            [0.2891566265, 0.1927710843, 0.0963855422, 0.1662650602, 0.1108433735, 0.1445783133],
        ),
    ],
)
def test_the_worked_example_of_a_row(last_row, variant, after):
    context = context_of(Prompt(2))
    scores = torch.tensor([ROW] * 4, dtype=torch.float64).log()
    method = LocoRE(window=2, layers=[2], variant=variant)
    edited = last_row(method, context, scores)
    after = torch.tensor(after, dtype=torch.float64)
    torch.testing.assert_close(edited[0], after, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("variant", "after"),
    [
        (
            "renormalised",
            [0.3182719296, 0.1930416834, 0.0958616630, 0.1817565373, 0.0816684766, 0.1293997101],
        ),
        (
            "score",
            [0.3288668667, 0.1994678376, 0.0990527967, 0.1708272836, 0.0680779252, 0.1337072901],
        ),
    ],
)
def test_the_worked_example_of_scores(last_row, variant, after):
    """Key 4 has a negative score and loses weight when scores are scaled."""
    context = context_of(Prompt(2))
    method = LocoRE(window=2, layers=[2], variant=variant)
    edited = last_row(method, context, torch.tensor([SCORES] * 4, dtype=torch.float64))
    # The control tables hold the factor 1.15 in float32.
    after = torch.tensor(after, dtype=torch.float64)
    torch.testing.assert_close(edited[0], after, rtol=0, atol=2e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_arrays(last_row, variant):
    arrays = np.load(GOLDEN / "locore_ref_rows.npz")
    hyper = json.loads((GOLDEN / "locore_ref_rows.json").read_text())["hyper"]
    scores = torch.from_numpy(arrays["logits"])
    assert scores.shape == (4, hyper["query_pos"] + 1)
    context = context_of(Prompt(hyper["first_output_pos"]))
    method = LocoRE(beta=hyper["beta"], window=hyper["window"], layers=[2], variant=variant)
    edited = last_row(method, context, scores)
    wanted = torch.from_numpy(arrays[VARIANTS[variant]])
    atol = 1e-7 if variant == "score" else 1e-14
    torch.testing.assert_close(edited, wanted, rtol=0, atol=atol)
    rule = method.compile(context).rule(RecentRule)
    keys = np.arange(scores.shape[1])
    inside = (keys >= rule.start) & (14 - keys <= rule.width) & (keys < 14)
    assert (inside == arrays["window"]).all()


@pytest.mark.parametrize(
    ("layers", "chosen"), [(32, range(9, 15)), (40, range(11, 19)), (28, range(8, 13)), (4, [1, 2])]
)
def test_default_layers(layers, chosen):
    sites = LocoRE().sites(context_of(Prompt(6), layers=layers))
    assert [layer for layer, _ in sites] == list(chosen)


@pytest.mark.parametrize("layers", range(1, 100))
def test_every_depth_has_default_layers(layers):
    assert LocoRE().sites(context_of(Prompt(6), layers=layers))


def test_the_rule():
    context = context_of(Prompt(12, images=((3, 9),)))
    assert LocoRE().compile(context).rule(RecentRule) == RecentRule(5, 12, ((0, 1),))
    options = {"window": 7, "region": "after_image", "include_self": True}
    assert LocoRE(**options).compile(context).rule(RecentRule) == RecentRule(7, 9, ((0, 1),), True)
    text = context_of(Prompt(12))
    assert LocoRE(region="after_image").compile(text).rule(RecentRule).start == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_generated_rows(variant):
    plan = LocoRE(variant=variant).compile(context_of(Prompt(12, images=((3, 9),))))
    for phase in Phase:
        assert (plan.program_key(phase) is None) == (phase != Phase.GENERATED)
    assert plan.tags == ()


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_strength_is_no_plan(with_image, variant):
    neutral = LocoRE(beta=0, variant=variant)
    assert compile_plan([neutral], with_image) is None
    assert compile_plan([neutral, PAI(alpha=0)], with_image) is None


@pytest.mark.parametrize(
    "options",
    [
        {"beta": -0.1},
        {"beta": float("nan")},
        {"beta": float("inf")},
        {"beta": 11},
        {"beta": "0.1"},
        {"beta": True},
        {"window": 0},
        {"window": -1},
        {"window": 2.5},
        {"window": 4097},
        {"variant": "both"},
        {"region": "image"},
        {"rows": "prompt"},
        {"rows": "last+generated"},
        {"include_self": 1},
        {"layers": []},
        {"layers": [1, 1]},
    ],
)
def test_bad_fields(options):
    with pytest.raises(ValidationError):
        LocoRE(**options)


def test_layers_and_heads_must_exist():
    context = context_of(Prompt(6))
    for options, param in (({"layers": [6]}, "layers[0]"), ({"heads": [0, 4]}, "heads[1]")):
        with pytest.raises(InterventionError) as caught:
            LocoRE(**options).compile(context)
        assert caught.value.param == param


def test_the_page_key_names_the_rule(with_image):
    base = LocoRE()
    keys = {
        method.compile(with_image).tags_key()
        for method in (
            base,
            LocoRE(window=6),
            LocoRE(include_self=True),
            LocoRE(region="after_image"),
        )
    }
    assert len(keys) == 4
    plan = compile_plan([VAR(move_fraction=0), base], with_image)
    assert plan.rule(RecentRule).source == 1
    assert plan.tags_key() == base.compile(with_image).tags_key()


def test_composed_with_var(with_image):
    """VAR's four classes, and its text outside sinks once more as recent keys."""
    for order in ([VAR(), LocoRE()], [LocoRE(), VAR()]):
        plan = compile_plan(order, with_image)
        assert plan.classes == 5
        assert len(plan.rule(RecentRule).remap) == 1
        ((text, recent),) = plan.rule(RecentRule).remap
        assert text == plan.generated_tag
        assert plan.scores[0].classes == (recent,)
        assert recent not in {tag for pair in plan.rule(SinkRule).remap for tag in pair}
        check_same_flow(plan, text, recent)


def check_same_flow(plan: Plan, text: int, recent: int) -> None:
    """VAR treats recent keys as it treats other text."""
    transform = np.array(plan.masses[0].transform)
    others = [c for c in range(plan.classes) if c not in (text, recent)]
    assert (transform[np.ix_(others, [text])] == transform[np.ix_(others, [recent])]).all()
    assert transform[text, text] == transform[recent, recent] == 1
    for gate in plan.masses[0].gates:
        assert gate.weights[text] == gate.weights[recent]


REFUSED = {
    "two windows": ([LocoRE(), LocoRE(window=9)], 1, "depend on the distance"),
    "sinks in generated text": (
        [VAR(sinks_in_generated=True), LocoRE()],
        1,
        "looks for sinks among generated keys",
    ),
    "two mass edits": (
        [LocoRE(variant="literal", layers=[2]), VAR(layers=[2])],
        1,
        "both move attention in layer 2, head 0, generated rows",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_pairs_that_are_refused(with_image, case):
    methods, later, message = REFUSED[case]
    for order in (methods, methods[::-1]):
        with pytest.raises(InterventionError, match=message) as caught:
            compile_plan(order, with_image)
        assert caught.value.code is Code.CONFLICT
        assert caught.value.param == f"interventions[{later}]"


def test_mass_edits_in_other_layers_compose(with_image):
    plan = compile_plan([LocoRE(variant="literal", layers=[2]), VAR(layers=[3])], with_image)
    assert [edit.source for edit in plan.masses] == [0, 1]
