"""Look at: the definition written out, which tokens a region has, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.image_views import ImageView
from saccade_interventions.methods.look_at import LookAt
from saccade_interventions.phases import Phase
from saccade_interventions.registry import Registry
from saccade_testing.plans import attend, context_of

TEXT = "<s> see: ?"
# An image of 60 x 40 pixels in 2 x 3 cells at [2, 8), a text, an image in two tiles and whole.
FIRST = ImageView(0, (2, 8), 2, 3, (60, 40))
TILES = (
    ImageView(1, (10, 14), 2, 2, (80, 40), box=(0, 0, 0.5, 1)),
    ImageView(1, (15, 19), 2, 2, (80, 40), box=(0.5, 0, 1, 1)),
    ImageView(1, (20, 24), 2, 2, (80, 40)),
)
VIEWS = (FIRST, *TILES)
PROMPT = Prompt(
    length=28,
    images=tuple(view.span for view in VIEWS),
    text="ab" * 14,
    offsets=[(i, i + 1) for i in range(28)],
    image_numbers=(0, 1, 1, 1),
    views=VIEWS,
)


def tokens(prompt: Prompt = PROMPT, **fields) -> list[int]:
    """The positions that the regions have."""
    plan = LookAt(**fields).compile(context_of(prompt))
    return np.flatnonzero(plan.base_tags() == 1).tolist()


def at(box: list[float], image: int = 0) -> dict:
    return {"regions": [{"image": image, "box": box}]}


def edited_row(z, inside, elsewhere, strength, rest):
    z = z.clone()
    z[..., inside] += strength
    z[..., elsewhere] += rest
    return torch.softmax(z, -1)


@pytest.mark.parametrize("strength", [-3.0, -0.5, 0.7, 2.0, 20.0])
@pytest.mark.parametrize("elsewhere", [0.0, -2.0, 1.5])
def test_the_definition_written_out(strength, elsewhere):
    """In float64; generated keys (28 and 29) keep their scores, and so do rows before the text."""
    plan = LookAt(
        **at([0, 0, 40, 20]), heads={"2": [1, 3]}, strength=strength, elsewhere=elsewhere
    ).compile(context_of(PROMPT))
    scores = torch.randn(4, 30, 30, dtype=torch.float64)
    before, found = attend(None, scores), attend(plan, scores, exact=True)
    inside, others = [2, 3], [4, 5, 6, 7]
    mask = torch.ones(30, 30, dtype=torch.bool).tril()
    for row in range(30):
        for head in range(4):
            wanted = before[head, row]
            if row >= 24 and head in (1, 3):
                z = scores[head, row].masked_fill(~mask[row], -math.inf)
                wanted = edited_row(z, inside, others, strength, elsewhere)
            torch.testing.assert_close(found[head, row], wanted, rtol=1e-12, atol=1e-15)


def test_the_share_is_what_the_formula_says():
    plan = LookAt(regions=[{"tokens": [3, 9]}], strength=1.3, layers=[2]).compile(
        context_of(PROMPT)
    )
    scores = torch.randn(4, 28, 28, dtype=torch.float64)
    before, after = (attend(p, scores, exact=True)[:, 25, 3:9].sum(-1) for p in (None, plan))
    factor = math.exp(1.3)
    torch.testing.assert_close(after, before * factor / (1 - before + before * factor))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_suppressed_tokens_get_nothing_and_the_rest_keeps_its_proportions(scale):
    plan = LookAt(
        regions=[{"tokens": [0, 9]}], strength="suppress", rows="prompt+generated", layers=[2]
    ).compile(context_of(PROMPT))
    scores = scale * torch.randn(4, 29, 29, dtype=torch.float64)
    before, after = attend(None, scores), attend(plan, scores)
    assert after[:, 9:, :9].abs().max() == 0
    left = torch.softmax(scores[:, 28, 9:], -1)
    torch.testing.assert_close(after[:, 28, 9:], left, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(after[:, :9], before[:, :9], rtol=1e-2, atol=1e-3)  # nothing else


def test_only_there():
    """Gaze heads' limit: of an image, nothing but the region."""
    plan = LookAt(**at([0, 0, 20, 20]), elsewhere="suppress", layers=[2]).compile(
        context_of(PROMPT)
    )
    after = attend(plan, torch.randn(4, 28, 28))
    assert after[:, 27, 3:8].abs().max() == 0
    assert after[:, 27, 2].min() > 0
    assert after[:, 27, 10:].min() > 0


@pytest.mark.parametrize(
    ("box", "found"),
    [
        ([0, 0, 60, 40], [2, 3, 4, 5, 6, 7]),
        ([20, 0, 40, 20], [3]),
        ([20, 20, 60, 40], [6, 7]),
        ([20.5, 0.5, 21, 1], [3]),  # less than a cell
        ([15, 5, 25, 15], [2, 3]),  # half of a small box in each of two
        ([16, 5, 26, 15], [3]),  # 4 of 10 and 6 of 10
        ([10, 0, 40, 20], [2, 3]),  # half of the first cell
        ([11, 0, 40, 20], [3]),
        ([15, 15, 25, 25], [2, 3, 5, 6]),  # a quarter of it in each
        ([16, 15, 26, 25], [3, 6]),
        ([59, 39, 60, 40], [7]),
    ],
)
def test_cells_of_a_box(box, found):
    assert tokens(**at(box)) == found


@pytest.mark.parametrize(("overlap", "found"), [(0.25, [2, 3]), (0.5, [3]), (1.0, [3])])
def test_how_much_of_a_cell_counts(overlap, found):
    """A quarter of the first, all of the second."""
    assert tokens(**at([15, 0, 40, 20]), overlap=overlap) == found


def test_the_largest_share_counts_however_much_is_asked_for():
    assert tokens(**at([1, 0, 40, 20]), overlap=1) == [3]
    assert tokens(**at([1, 0, 39, 19]), overlap=1) == [2, 3]


@pytest.mark.parametrize(
    ("box", "found"),
    [
        ([0, 0, 80, 40], [*range(10, 14), *range(15, 19), *range(20, 24)]),
        ([0, 0, 20, 20], [10, 20]),  # one cell of the tile, half of one of the whole
        ([0, 0, 10, 10], [10, 20]),
        ([35, 0, 44, 20], [11, 20]),  # across the tiles: one of them, and one of the whole
        ([30, 0, 50, 20], [11, 15, 20, 21]),
        ([60, 20, 80, 40], [18, 23]),
    ],
)
def test_tiles_and_the_whole_show_a_box(box, found):
    assert tokens(**at(box, image=1)) == found


def test_boxes_end_where_cells_do():
    """Whatever the rounding: 7 x 7 cells of an image of 100 x 100, box by box."""
    view = ImageView(0, (1, 50), 7, 7, (100, 100))
    prompt = Prompt(60, (view.span,), views=(view,))
    for row in range(7):
        for column in range(7):
            left, top, right, bottom = view.boxes[row, column] * 100
            for overlap in (0.01, 1):
                found = tokens(prompt, **at([left, top, right, bottom]), overlap=overlap)
                assert found == [1 + 7 * row + column]


def test_newlines_and_what_is_left_out_are_no_cells():
    view = ImageView(0, (3, 12), 3, 2, (40, 60), gap=1)
    assert view.positions.tolist() == [[3, 4], [6, 7], [9, 10]]
    prompt = Prompt(15, (view.span,), views=(view,))
    assert tokens(prompt, **at([0, 0, 40, 60])) == [3, 4, 6, 7, 9, 10]
    lacking = replace(view, lead=-1, gap=0, span=(3, 8))
    prompt = Prompt(15, (lacking.span,), views=(lacking,))
    assert lacking.positions.tolist() == [[-1, 3], [4, 5], [6, 7]]
    assert tokens(prompt, **at([0, 0, 40, 20])) == [3]
    with pytest.raises(InterventionError, match="is shown nothing of this part"):
        tokens(prompt, **at([0, 0, 20, 20]))
    values = np.arange(30.0).reshape(2, 15)
    assert lacking.of_cells(values)[1].tolist() == [[0, 18], [19, 20], [21, 22]]


def test_cells_half_of_padding_count_by_what_they_show():
    view = ImageView(0, (0, 4), 1, 4, (60, 20), box=(-1 / 6, 0, 7 / 6, 1))
    prompt = Prompt(9, (view.span,), views=(view,))
    assert tokens(prompt, **at([0, 0, 10, 20]), overlap=1) == [0]
    assert tokens(prompt, **at([50, 0, 60, 20]), overlap=1) == [3]


def test_what_is_cropped_has_no_tokens():
    view = ImageView(0, (0, 4), 2, 2, (80, 40), box=(0.25, 0, 0.75, 1))
    prompt = Prompt(9, (view.span,), views=(view,))
    assert tokens(prompt, **at([0, 0, 80, 40])) == [0, 1, 2, 3]
    assert tokens(prompt, **at([0, 0, 21, 40])) == [0, 2]
    with pytest.raises(InterventionError, match="cropped") as caught:
        tokens(prompt, regions=[{"tokens": [0, 1]}, {"box": [0, 0, 20, 40]}])
    assert (caught.value.code, caught.value.param) == (Code.TARGET_NOT_FOUND, "regions[1]")


def counts(pixels: np.ndarray) -> dict:
    flat = pixels.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    return {"size": list(pixels.shape), "counts": np.diff(edges, prepend=0).tolist()}


@pytest.mark.parametrize("shape", [(40, 60), (20, 30), (4, 6)])
def test_a_mask_has_the_tokens_of_its_box(shape):
    """At the image's size and smaller, as far as its pixels can say the box."""
    height, width = shape
    for box in ([0, 0, 20, 20], [20, 10, 60, 40], [10, 0, 40, 20], [0, 0, 60, 40]):
        pixels = np.zeros(shape, bool)
        left, top, right, bottom = np.array(box) * ([width / 60, height / 40] * 2)
        pixels[int(top) : int(bottom), int(left) : int(right)] = True
        mask = counts(pixels)
        assert tokens(regions=[{"mask": mask}]) == tokens(**at(box)), box


def test_a_mask_of_scattered_pixels_counts_areas():
    pixels = np.zeros((40, 60), bool)
    pixels[::2, :20] = True  # half of the first cell
    pixels[::3, 40:] = True  # a third of the last of a row
    assert tokens(regions=[{"mask": counts(pixels)}]) == [2, 5]
    assert tokens(regions=[{"mask": counts(pixels)}], overlap=0.3) == [2, 4, 5, 7]


def test_regions_of_all_kinds_are_one():
    regions = [
        {"image": 1, "box": [60, 20, 80, 40]},
        {"tokens": [25, 27]},
        {"text": "ab"},
        {"image": 0, "mask": {"size": [2, 3], "counts": [5, 1]}},
    ]
    assert tokens(regions=regions[:2]) == [18, 23, 25, 26]
    assert tokens(regions=[regions[0], regions[3]]) == [7, 18, 23]
    words = replace(PROMPT, text="x" * 25 + "aby")
    assert tokens(words, regions=[regions[2], regions[0]]) == [18, 23, 25, 26]


def test_elsewhere_is_the_rest_of_the_images_that_have_a_region():
    plan = LookAt(**at([60, 20, 80, 40], image=1), elsewhere=-1).compile(context_of(PROMPT))
    tags = plan.base_tags()
    assert np.flatnonzero(tags == 2).tolist() == [*range(10, 14), 15, 16, 17, 20, 21, 22]
    assert [edit.bias for edit in plan.scores] == [2.0, -1.0]


def test_rows_are_those_behind_the_image_unless_others_are_named():
    plan = LookAt(**at([0, 0, 9, 9])).compile(context_of(PROMPT))
    assert plan.scores[0].phases == (Phase.QUESTION, Phase.LAST, Phase.GENERATED)


def test_strength_0_is_no_plan():
    entry = LookAt(**at([0, 0, 9, 9]), strength=0)
    assert compile_plan([entry], context_of(PROMPT)) is None


REFUSED = [
    (at([0, 0, 61, 40]), "regions[0].box", "of 60 x 40 pixels"),
    (at([0, 0, 60, 40.5]), "regions[0].box", "of 60 x 40 pixels"),
    (at([0, 0, 10, 10], image=2), "regions[0].image", "the prompt has 2, from 0"),
    ({"regions": [{"tokens": [0, 2]}, {"tokens": [27, 29]}]}, "regions[1].tokens", "28 tokens"),
    ({"regions": [{"text": "zebra"}]}, "regions[0].text", "does not contain"),
    ({"regions": [{"tokens": [0, 28]}]}, "regions", "all of the prompt"),
    (
        {"regions": [{"mask": {"size": [60, 40], "counts": [0, 2400]}}]},
        "regions[0].mask.size",
        "the mask is",
    ),
    (
        {"regions": [{"mask": {"size": [80, 120], "counts": [1, 9599]}}]},
        "regions[0].mask.size",
        "the mask is",
    ),
    ({"regions": [{"mask": {"size": [1, 1], "counts": [0, 1]}}]}, None, None),
    ({"regions": [{"mask": {"size": [13, 20], "counts": [0, 260]}}]}, None, None),
    (
        {"regions": [{"mask": {"size": [15, 20], "counts": [0, 300]}}]},
        "regions[0].mask.size",
        "the mask is",
    ),
]


@pytest.mark.parametrize(("fields", "param", "reason"), REFUSED)
def test_what_is_not_in_the_prompt_is_refused(fields, param, reason):
    if param is None:
        assert tokens(**fields)
        return
    with pytest.raises(InterventionError, match=reason) as caught:
        tokens(**fields)
    assert (caught.value.code, caught.value.param) == (Code.TARGET_NOT_FOUND, param)


@pytest.mark.parametrize(
    ("context", "code"),
    [
        (context_of(Prompt(9)), Code.REQUIRES_IMAGE),
        (context_of(Prompt(9), accepts_images=False), Code.UNSUPPORTED_MODEL),
        (context_of(Prompt(9, ((2, 5),))), Code.UNSUPPORTED_MODEL),  # nothing is known of it
    ],
)
def test_an_image_that_is_not_there(context: Context, code: Code):
    with pytest.raises(InterventionError) as caught:
        LookAt(regions=[{"tokens": [0, 1]}, {"box": [0, 0, 1, 1]}]).compile(context)
    assert (caught.value.code, caught.value.param) == (code, "regions[1].image")


BOX = {"box": [0, 0, 5, 5]}
WRONG = [
    ({"regions": []}, "regions"),
    ({}, "regions"),
    ({"regions": [BOX] * 65}, "regions"),
    ({"regions": [BOX, {"box": [5, 0, 0, 5]}]}, "regions[1].box"),
    ({"regions": [BOX, {"box": [0, 4, 9, 4]}]}, "regions[1].box"),
    ({"regions": [{"box": [0, 0, 5]}]}, "regions[0].box"),
    ({"regions": [{"box": [0, -1, 5, 5]}]}, "regions[0].box[1]"),
    ({"regions": [{"box": [0, 0, float("nan"), 5]}]}, "regions[0].box[2]"),
    ({"regions": [{"box": [0, 0, 5, float("inf")]}]}, "regions[0].box[3]"),
    ({"regions": [{"box": [0, 0, 5, "5"]}]}, "regions[0].box[3]"),
    ({"regions": [{"box": [0, 0, 5, 1e300]}]}, "regions[0].box[3]"),
    ({"regions": [{**BOX, "image": -1}]}, "regions[0].image"),
    ({"regions": [{**BOX, "image": True}]}, "regions[0].image"),
    ({"regions": [{**BOX, "imag": 0}]}, "regions[0].imag"),
    ({"regions": [{**BOX, "text": "x"}]}, "regions[0]"),
    ({"regions": [{"image": 0}]}, "regions[0]"),
    ({"regions": [[0, 0, 5, 5]]}, "regions[0]"),
    ({"regions": [{"image": 0, "tokens": [0, 2]}]}, "regions[0].image"),
    ({"regions": [{"tokens": [2, 2]}]}, "regions[0].tokens"),
    ({"regions": [{"text": ""}]}, "regions[0].text"),
    ({"regions": [{"mask": {"size": [2, 2]}}]}, "regions[0].mask.counts"),
    ({"regions": [{"mask": {"size": [2, 2], "counts": [1, 1]}}]}, "regions[0].mask.counts"),
    ({"regions": [{"mask": {"size": [2, 2], "counts": [4, 0]}}]}, "regions[0].mask.counts"),
    ({"regions": [{"mask": {"size": [2, 10**9], "counts": [1, 1]}}]}, "regions[0].mask.size[1]"),
    ({"regions": [{"mask": {"size": [2, 2], "counts": [1, -1, 4]}}]}, "regions[0].mask.counts[1]"),
    ({"regions": [BOX], "strength": "no"}, "strength"),
    ({"regions": [BOX], "strength": 21}, "strength"),
    ({"regions": [BOX], "strength": True}, "strength"),
    ({"regions": [BOX], "overlap": 0}, "overlap"),
    ({"regions": [{"text": "x"}], "elsewhere": -1}, "elsewhere"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_wrong_entries_are_refused_where_they_are_wrong(registry: Registry, fields, param):
    with pytest.raises(InterventionError) as caught:
        registry.parse([{"method": "look_at", **fields}])
    assert (caught.value.status, caught.value.param) == (400, f"interventions[0].{param}")


def test_what_was_asked_can_be_asked_again(registry: Registry):
    for strength in (1, "suppress"):
        entry = {"method": "look_at", "regions": [BOX, {"text": "x"}], "strength": strength}
        (method,) = registry.parse([entry])
        (again,) = registry.parse([method.normalised()])
        assert again.fingerprint() == method.fingerprint()


def test_needs_say_sizes():
    mask = {"size": [20, 30], "counts": [0, 600]}
    needs = LookAt(
        regions=[{"image": 2, "box": [0, 0, 9.5, 7]}, {"mask": mask}, {"text": "x"}]
    ).needs()
    assert (needs.images, needs.texts) == (3, ("x",))
    sizes = [(size.image, size.width, size.height, size.exact) for size in needs.sizes]
    assert sizes == [(2, 10, 7, False), (0, 30, 20, True)]
