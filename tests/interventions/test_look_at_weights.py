"""Weights over regions: the definition written out, which token gets what, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import InterventionError
from saccade_interventions.image_views import ImageView
from saccade_interventions.methods.look_at import LookAt
from saccade_interventions.registry import Registry
from saccade_testing.plans import attend, context_of

# An image of 60 x 40 pixels in 2 x 3 cells at [2, 8), a text, an image in two tiles and whole.
FIRST = ImageView(0, (2, 8), 2, 3, (60, 40))
VIEWS = (
    FIRST,
    ImageView(1, (10, 14), 2, 2, (80, 40), box=(0, 0, 0.5, 1)),
    ImageView(1, (15, 19), 2, 2, (80, 40), box=(0.5, 0, 1, 1)),
    ImageView(1, (20, 24), 2, 2, (80, 40)),
)
PROMPT = Prompt(
    length=28,
    images=tuple(view.span for view in VIEWS),
    text="." * 24 + "abab",
    offsets=[(i, i + 1) for i in range(28)],
    image_numbers=(0, 1, 1, 1),
    views=VIEWS,
)


def weights(*regions: dict, prompt: Prompt = PROMPT, **fields) -> dict[int, float]:
    """The factor of every position that has another one than 1, by the plan."""
    plan = LookAt(regions=list(regions), **fields).compile(context_of(prompt))
    found = np.zeros(prompt.length)
    for slot in plan.key_weights:
        found += slot.unpack(prompt.length)
    return {i: pytest.approx(math.exp(found[i]), rel=1e-6) for i in np.flatnonzero(found).tolist()}


def test_the_definition_written_out() -> None:
    """Of one row of five keys, a beginning, two weighed, another and a generated one."""
    z = torch.tensor([3, 1, 0.5, 1, 2], dtype=torch.float64)
    regions = [{"tokens": [1, 3], "weights": [4, 0]}]
    plan = LookAt(regions=regions, layers=[2]).compile(context_of(Prompt(4)))
    found = attend(plan, z.expand(4, 5, 5).clone(), exact=True)[:, 4]
    wanted = torch.softmax(z, 0) * torch.tensor([1.0, 4, 0, 1, 1])
    wanted = wanted / wanted.sum()
    torch.testing.assert_close(found, wanted.expand(4, 5), rtol=1e-7, atol=0)
    known = torch.tensor([0.489104, 0.264772, 0, 0.066193, 0.179931], dtype=torch.float64)
    torch.testing.assert_close(wanted, known, rtol=0, atol=5e-7)


def test_a_map_over_an_image_written_out() -> None:
    """Random weights and scores: A'_j = w_j A_j / C in the rows and heads that are named."""
    rng = np.random.default_rng(0)
    grid = rng.uniform(0.1, 5, (2, 3))
    grid[1, 0] = 0
    region = {"image": 0, "weights": grid.tolist()}
    entry = LookAt(regions=[region], heads={"2": [1, 3]})
    scores = torch.randn(4, 30, 30, dtype=torch.float64)
    plan = entry.compile(context_of(PROMPT))
    before, found = attend(None, scores), attend(plan, scores, exact=True)
    factors = torch.ones(30, dtype=torch.float64)
    factors[2:8] = torch.from_numpy(grid.ravel())
    for row in range(30):
        for head in range(4):
            wanted = before[head, row]
            if row >= 24 and head in (1, 3):
                wanted = wanted * factors / (wanted * factors).sum()
            torch.testing.assert_close(found[head, row], wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("factor", [0.25, 3.0])
@pytest.mark.parametrize(
    "region",
    [
        {"image": 1, "box": [10, 0, 60, 30]},
        {"image": 0, "mask": {"size": [2, 3], "counts": [1, 3, 2]}},
        {"tokens": [3, 6]},
        {"text": "ab"},
    ],
    ids=["box", "mask", "tokens", "text"],
)
def test_equal_weights_are_a_strength(region: dict, factor: float) -> None:
    own = [factor] * 3 if "tokens" in region else [factor] * 2
    given = own if "tokens" in region or "text" in region else [own, own, own]
    scores = torch.randn(4, 30, 30, dtype=torch.float64)
    entries = (
        LookAt(regions=[{**region, "weights": given}], layers=[2]),
        LookAt(regions=[region], strength=math.log(factor), layers=[2]),
    )
    one, other = (attend(e.compile(context_of(PROMPT)), scores, exact=True) for e in entries)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


def test_weights_of_1_are_no_plan() -> None:
    """Whatever the strength, which is for regions without weights."""
    for region in (
        {"image": 0, "weights": [[1] * 7] * 11},
        {"image": 1, "box": [3, 1, 71, 39], "weights": [[1] * 3] * 3},
        {"tokens": [3, 5], "weights": [1, 1]},
        {"text": "ab", "weights": [1.0]},
    ):
        entry = LookAt(regions=[region], strength=5)
        assert compile_plan([entry], context_of(PROMPT)) is None


# Which token gets what


def test_tokens_get_the_mean_of_what_they_show() -> None:
    """2 x 3 cells of 20 x 20 pixels."""
    assert weights({"weights": [[2, 0.5]]}) == {2: 2, 5: 2, 3: 1.25, 6: 1.25, 4: 0.5, 7: 0.5}
    assert weights({"weights": [[4], [1]]}) == {2: 4, 3: 4, 4: 4}
    fine = np.ones((4, 6))
    fine[2, 4] = 9
    assert weights({"weights": fine.tolist()}) == {7: 3}
    assert weights({"weights": [[1] * 5 + [7]]}) == {4: 4, 7: 4}  # half of the last column


def test_a_grid_fills_its_box() -> None:
    """What a token shows of the image outside of the box has no say."""
    assert weights({"box": [20, 0, 60, 20], "weights": [[2, 3]]}) == {3: 2, 4: 3}
    assert weights({"box": [10, 0, 60, 20], "weights": [[2, 3]]}) == {2: 2, 3: 2.25, 4: 3}
    assert weights({"box": [11, 0, 60, 20], "weights": [[2, 3]]}).keys() == {3, 4}
    assert weights({"box": [5, 5, 10, 10], "weights": [[2, 0]]}) == {}  # 1, but for rounding
    assert weights({"box": [5, 5, 10, 10], "weights": [[2, 4]]}) == {2: 3}


def test_a_mask_says_which_tokens_a_grid_over_the_image_is_for() -> None:
    mask = {"size": [2, 3], "counts": [2, 3, 1]}  # below and above, column by column
    grid = [[2, 3, 4], [5, 6, 7]]
    assert weights({"mask": mask, "weights": grid}) == {3: 3, 6: 6, 4: 4}


def test_tiles_and_the_whole_get_the_same_map() -> None:
    found = weights({"image": 1, "weights": [[2, 3, 4, 5], [6, 7, 8, 9]]})
    tiles = {10: 2, 11: 3, 12: 6, 13: 7, 15: 4, 16: 5, 17: 8, 18: 9}
    assert found == {**tiles, 20: 2.5, 21: 4.5, 22: 6.5, 23: 8.5}


def test_newlines_and_padding_have_no_weight() -> None:
    view = ImageView(0, (3, 12), 3, 2, (40, 60), gap=1)
    prompt = Prompt(15, (view.span,), views=(view,))
    assert weights({"weights": [[0.5]]}, prompt=prompt).keys() == {3, 4, 6, 7, 9, 10}
    padded = ImageView(0, (0, 4), 1, 4, (60, 20), box=(-1 / 6, 0, 7 / 6, 1))
    prompt = Prompt(9, (padded.span,), views=(padded,))
    row = {"weights": [[2, 3, 4, 5, 6, 7]]}  # of 10 pixels each; cells show 10, 20, 20, 10
    assert weights(row, prompt=prompt) == {0: 2, 1: 3.5, 2: 5.5, 3: 7}
    cropped = ImageView(0, (0, 4), 2, 2, (80, 40), box=(0.25, 0, 0.75, 1))
    prompt = Prompt(9, (cropped.span,), views=(cropped,))
    assert weights({"weights": [[2, 3, 4, 5]]}, prompt=prompt) == {0: 3, 1: 4, 2: 3, 3: 4}


def test_texts_get_their_weights_at_every_occurrence() -> None:
    assert weights({"text": "ab", "weights": [2, 3]}) == {24: 2, 25: 3, 26: 2, 27: 3}
    assert weights({"text": "ab", "weights": [2, 3, 4, 5]}) == {24: 2.5, 25: 4.5, 26: 2.5, 27: 4.5}
    assert weights({"text": "bab", "weights": [0.5]}) == {25: 0.5, 26: 0.5, 27: 0.5}
    words = replace(PROMPT, text="x" * 25 + "aby")
    assert weights({"text": "ab", "weights": [2, 3]}, prompt=words) == {25: 2, 26: 3}


def test_where_regions_meet_all_of_them_count() -> None:
    both = [{"tokens": [2, 4], "weights": [2, 3]}, {"tokens": [3, 5], "weights": [4, 5]}]
    assert weights(*both) == {2: 2, 3: 12, 4: 5}
    taken = [{"tokens": [2, 4], "weights": [0, 3]}, {"tokens": [2, 5], "weights": [100, 0, 0]}]
    assert weights(*taken) == {2: 0, 3: 0, 4: 0}
    plan = LookAt(regions=[{"tokens": [3, 9]}, both[0]], strength=1.5, layers=[2]).compile(
        context_of(PROMPT)
    )
    assert np.flatnonzero(plan.base_tags()).tolist() == [*range(3, 9)]
    assert [(edit.bias, edit.slot) for edit in plan.scores] == [(1.5, None), (0.0, 0)]


def test_elsewhere_is_what_no_region_has() -> None:
    region = {"image": 0, "box": [20, 0, 60, 20], "weights": [[2, 3]]}
    plan = LookAt(regions=[region], elsewhere=-1).compile(context_of(PROMPT))
    assert np.flatnonzero(plan.base_tags() == 1).tolist() == [2, 5, 6, 7]
    assert [edit.bias for edit in plan.scores] == [-1.0, 0.0]


# What is refused

BOX = {"box": [0, 0, 5, 5]}
WRONG = [
    ({"weights": []}, "weights"),
    ({"weights": [[]]}, "weights[0]"),
    ({"weights": [[1, 2], [3]]}, "weights"),
    ({"weights": [1, 2]}, "weights[0]"),
    ({"weights": [[1, "2"]]}, "weights[0][1]"),
    ({"weights": [[1, True]]}, "weights[0][1]"),
    ({"weights": [[1, -0.5]]}, "weights[0][1]"),
    ({"weights": [[1, 10001]]}, "weights[0][1]"),
    ({"weights": [[math.nan]]}, "weights[0][0]"),
    ({"weights": [[math.inf]]}, "weights[0][0]"),
    ({"weights": [[1] * 129]}, "weights[0]"),
    ({"weights": [[1]] * 129}, "weights"),
    ({"weights": [[1]], "image": -1}, "image"),
    ({"weights": 2}, "weights"),
    ({"weights": None}, "weights"),
    ({**BOX, "weights": [1]}, "weights[0]"),
    ({"tokens": [2, 5], "weights": [1, 2]}, "weights"),
    ({"tokens": [2, 4], "weights": [[1, 2]]}, "weights[0]"),
    ({"tokens": [2, 4], "weights": [1, 1e5]}, "weights[1]"),
    ({"text": "x", "weights": []}, "weights"),
    ({"text": "x", "weights": [1] * 4097}, "weights"),
]


@pytest.mark.parametrize(("region", "path"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_weights_are_refused_where_they_are_wrong(registry: Registry, region, path) -> None:
    with pytest.raises(InterventionError) as caught:
        registry.parse([{"method": "look_at", "regions": [BOX, region]}])
    assert caught.value.status == 400
    assert caught.value.param == f"interventions[0].regions[1].{path}"


def test_what_was_asked_can_be_asked_again(registry: Registry) -> None:
    entry = {"method": "look_at", "regions": [{"weights": [[1, 2]]}, {"text": "x", "weights": [3]}]}
    (method,) = registry.parse([entry])
    (again,) = registry.parse([method.normalised()])
    assert again.normalised() == method.normalised()
