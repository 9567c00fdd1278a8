"""Every detector against its formula written out, and against worked examples by hand."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from saccade_server.detectors.anatomy_of_a_lie import AnatomyOfALie
from saccade_server.detectors.fai import FAI
from saccade_server.detectors.sinks import Sinks, kind
from saccade_server.detectors.svar import SVAR
from saccade_server.detectors.traced import Traced
from saccade_server.detectors.vas import VAS
from saccade_server.detectors.vhd import VHD, t_vhd
from saccade_server.detectors.waad import WAAD

PROMPT, IMAGE = 5, ((1, 3),)
CLASSES = ["image", "sinks", "question", "recent", "rest"]


def traced(
    tokens: int, arrays: dict[str, Any], axes: dict[str, dict[str, Any]], **more: Any
) -> Traced:
    values = {name: np.asarray(array) for name, array in arrays.items()}
    images = more.pop("images", IMAGE)
    return Traced(values, axes, PROMPT, tokens, images, **more)


def rows(count: int) -> list[int]:
    """The rows of an answer: the prompt's last and those behind it."""
    return [PROMPT - 1 + row for row in range(count)]


def causal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Attention [layer, head, row, key] that sums to 1 over the keys a row sees."""
    weights = np.tril(rng.uniform(0.1, 1, shape))
    return weights / weights.sum(-1, keepdims=True)


def test_svar_sums_layers_and_leaves_out_the_row_that_ended_the_answer() -> None:
    masses = np.zeros((3, 2, 5))
    # Heads [.30 .10] and [.20 .40] of two layers, averaged over heads as the trace has them.
    masses[0, :, 0] = [np.mean([0.3, 0.1]), np.mean([0.2, 0.4])]
    masses[1, :, 0] = [0.01, 0.04]
    found = SVAR().scores(
        traced(2, {"masses": masses}, {"masses": {"row": rows(3), "class": CLASSES}})
    )
    assert found.tokens == pytest.approx([0.5, 0.05])
    assert found.answer == pytest.approx(0.275)
    least = SVAR(reduce="min").scores(
        traced(2, {"masses": masses}, {"masses": {"row": rows(3), "class": CLASSES}})
    )
    assert least.answer == pytest.approx(0.05)


def test_vas_is_a_mean_of_ratios() -> None:
    image = np.array([[0.30, 0.20], [0.10, 0.05]])
    system = np.array([[0.10, 0.40], [0.50, 0.90]])
    found = VAS().scores(traced(1, {"vas": (image / system)[:, :, None]}, {"vas": {}}))
    assert found.answer == pytest.approx(0.938889, abs=1e-6)
    assert found.tokens is None


@pytest.mark.parametrize("empty", [np.zeros((0, 2, 2)), np.full((1, 2, 2), np.nan)])
def test_vas_without_a_system_prompt_says_so(empty: Any) -> None:
    found = VAS().scores(traced(1, {"vas": empty}, {"vas": {}}))
    assert found.answer is None
    assert "system prompt" in (found.reason or "")


def test_t_vhd_adds_the_largest_heads_of_each_layer() -> None:
    outputs = (
        np.array([[1, 0], [0, 2], [3, 4], [1, 1.0]]),
        np.array([[1, 0.5], [0, 0], [3, 1], [9, 9.0]]),
    )
    divergence = np.linalg.norm(outputs[0] - outputs[1], axis=-1)[None, None]
    assert t_vhd(divergence, 2) == pytest.approx([14.313708499])
    assert t_vhd(divergence, None) == t_vhd(divergence, 2)
    assert t_vhd(divergence, 99) == pytest.approx([divergence.sum()])
    two = np.concatenate([divergence, divergence], 1)
    assert t_vhd(two, 1) == pytest.approx([2 * 11.313708499])
    arrays, axes = {"vhd": np.concatenate([two, 0 * two])}, {"vhd": {"row": rows(2)}}
    assert VHD(top=1).scores(traced(1, arrays, axes)).answer == pytest.approx(22.627416998)
    assert VHD(top=1).scores(traced(2, arrays, axes)).answer == pytest.approx(11.313708499)


def test_sinks_are_scored_by_columns_and_by_massive_activations() -> None:
    rng = np.random.default_rng(0)
    weights = causal((2, 3, PROMPT, PROMPT), rng)
    weights[0, 0] = np.tril(np.full((PROMPT, PROMPT), 0.01))
    weights[0, 0, :, 0] = 0.9
    scores = rng.uniform(0, 5, (2, PROMPT + 2))
    found = np.zeros((2, PROMPT + 2), np.uint8)
    found[:, 0] = found[1, 2] = found[1, PROMPT] = 1
    arrays = {"columns": weights.sum(2), "sinks.scores": scores, "sinks.found": found}
    got = Sinks(epsilon=0.3).scores(traced(2, arrays, {}))
    rate = np.zeros(PROMPT)
    for layer, head, key in product(range(2), range(3), range(PROMPT)):
        alpha = sum(weights[layer, head, row, key] for row in range(key, PROMPT)) / (PROMPT - key)
        rate[key] += (alpha > 0.3) / 6
    positions = [key for key in range(PROMPT) if rate[key] > 0 or found[:, key].any()]
    assert got.values["positions"].tolist() == positions
    assert got.values["sink_rate"] == pytest.approx(rate[positions])
    assert got.values["phi"] == pytest.approx(scores.max(0)[positions])
    assert got.values["lifetime"].tolist() == [int(found[:, key].sum()) for key in positions]
    assert got.values["uniform"] == pytest.approx(sum(1 / k for k in range(1, PROMPT + 1)) / PROMPT)
    assert got.answer == 1  # position 2 lies in the image; 0 does not, and 5 is of the answer


def test_a_sink_is_named_by_its_lifetime() -> None:
    assert [kind(life, 48) for life in (0, 4, 5, 32, 33, 48)] == [
        "attention only",
        "noise",
        "secondary",
        "secondary",
        "like BOS",
        "like BOS",
    ]
    assert [kind(life, 6) for life in (1, 2, 3)] == ["secondary", "secondary", "like BOS"]


def example() -> tuple[np.ndarray[Any, Any], int]:
    """The specification's numeric example: eight positions, of which two are the prompt."""
    rng = np.random.default_rng(0)
    rng.uniform(0, 0.01, (12, 12)), rng.normal(size=8)
    weights = np.tril(rng.uniform(0.1, 1, (8, 8)))
    return weights / weights.sum(1, keepdims=True), 2


def of_example() -> Traced:
    weights, prompt = example()
    arrays = {"attention": weights[prompt - 1 :, None, None, :]}
    axes = {"attention": {"row": list(range(prompt - 1, 8)), "key": list(range(8))}}
    return Traced(arrays, axes, prompt, 8 - prompt)


def test_waad_is_that_of_the_example() -> None:
    found = WAAD(window=3, heads=1.0).scores(of_example())
    expected = [1.259, 1.472, 1.618, 2.012, 1.758, 2.306]
    assert found.tokens == pytest.approx(expected, abs=5e-4)
    assert found.values["changes"] == pytest.approx(np.abs(np.diff(expected)), abs=1e-3)
    assert found.answer == pytest.approx(np.mean(expected), abs=5e-4)


def test_fai_is_that_of_the_example() -> None:
    found = FAI(near=2, far=4, heads=1.0, anchors=0.5).scores(of_example())
    assert found.tokens is not None
    # Of positions 2 to 7, the answer's; the last two have no row far enough behind them.
    assert found.tokens == pytest.approx(
        [0.213, 0.129, 0.102, 0.211, math.nan, math.nan], abs=5e-4, nan_ok=True
    )
    assert found.values["anchors"] == [0, 3]


def test_waad_and_fai_take_the_heads_that_look_near_and_far() -> None:
    rng = np.random.default_rng(3)
    layers, heads, tokens, total = 2, 5, 7, PROMPT + 7
    weights = causal((layers, heads, total, total), rng)
    own = range(PROMPT, PROMPT + tokens - 1)  # the last token was drawn, and has no row
    reach = np.array(
        [
            [
                np.mean([sum(weights[l, h, t, s] * (t - s) for s in range(t + 1)) for t in own])
                for h in range(heads)
            ]
            for l in range(layers)
        ]
    )
    order = np.argsort(reach, axis=None)
    near, far = order[:3], order[-3:]
    flat = weights.reshape(-1, total, total)
    arrays = {"attention": weights[:, :, PROMPT - 1 : PROMPT - 1 + tokens].transpose(2, 0, 1, 3)}
    axes = {"attention": {"row": rows(tokens), "key": list(range(total))}}
    got = WAAD(window=4).scores(traced(tokens, arrays, axes, images=()))
    local = flat[near].mean(0)
    waad = [sum(local[t, s] * min(t - s, 4) for s in range(t + 1)) for t in own]
    assert got.tokens is not None
    assert got.tokens[:-1] == pytest.approx(waad)
    assert math.isnan(got.tokens[-1])
    assert sorted(l * heads + h for l, h in got.values["local_heads"]) == sorted(near.tolist())
    got = FAI(near=2, far=3).scores(traced(tokens, arrays, axes, images=()))
    spread = flat[far].mean(0)
    assert got.tokens is not None
    for token in range(tokens):
        later = [t for t in own if token + 2 <= t - PROMPT <= token + 3]
        expected = np.mean([spread[t, PROMPT + token] for t in later]) if later else math.nan
        assert got.tokens[token] == pytest.approx(expected, nan_ok=True)
    assert sorted(l * heads + h for l, h in got.values["global_heads"]) == sorted(far.tolist())


@pytest.mark.parametrize("detector", [WAAD(), FAI()])
def test_an_answer_of_one_token_has_no_row_of_its_own(detector: WAAD | FAI) -> None:
    arrays = {"attention": np.ones((1, 1, 1, 6)) / 6}
    axes = {"attention": {"row": rows(1), "key": list(range(6))}}
    found = detector.scores(traced(1, arrays, axes))
    assert found.answer is None
    assert found.reason


@pytest.mark.parametrize("detector", [SVAR(), VHD(), VAS(), AnatomyOfALie()])
def test_what_looks_at_images_needs_one(detector: Any) -> None:
    assert detector.needs_image
    assert detector.scores(traced(1, {}, {}, images=())).reason == "the prompt has no image"


VOCABULARY = np.array(
    [[0.70, 0.10, 0.15, 0.05], [0.30, 0.20, 0.30, 0.20], [0.85, 0.05, 0.05, 0.05]]
)
ANSWER = np.array([0.60, 0.30, 0.06, 0.04])
TEXTS = ["It", " seems", " red.", " So the answer is", " Yes"]
MIXTURE = {
    "weights": [0.6, 0.4],
    "means": [[0, 0, 0], [1, 1, 0]],
    "covariances": [np.eye(3), np.diag([0.25, 1, 1])],
    "center": [0, 0, 0],
    "scale": [1, 1, 1],
}


def of_a_lie(density: Any = None, texts: Any = TEXTS) -> Traced:
    """Three tokens of evidence, the marker and the answer, token 0, as in the worked example."""
    every = np.vstack([VOCABULARY, VOCABULARY[:1], ANSWER])
    entropies = -(every * np.log(every)).sum(1)
    arrays = {
        "token_shares": every[:, [1, 3]].sum(1, keepdims=True),
        "entropy": entropies,
        "logprobs": np.log(every[:, 0]),
        "logprobs.without_images": np.log([0.5, 0.5, 0.5, 0.7, 0.2]),
    }
    axes = {name: {"row": rows(5)} for name in arrays}
    return traced(5, arrays, axes, texts=texts, density=density)


def test_the_three_values_are_those_of_the_worked_example() -> None:
    found = AnatomyOfALie(marker="So the answer is").scores(of_a_lie())
    assert found.values["evidence"] == pytest.approx(0.683262, abs=1e-6)
    assert found.values["conflict"] == pytest.approx(1.098612, abs=1e-6)
    assert found.values["decision"] == pytest.approx(1.392557, abs=1e-6)
    assert found.answer is None
    assert "density" in (found.reason or "")


def test_without_a_marker_every_token_is_evidence_and_answer() -> None:
    found = AnatomyOfALie().scores(of_a_lie())
    assert found.values["conflict"] == pytest.approx(np.mean(found.values["conflicts"]))
    assert found.values["conflicts"] == pytest.approx(np.log([1.4, 0.6, 1.7, 1, 3]), abs=1e-6)
    assert found.values["decisions"][-1] == pytest.approx(1.392557, abs=1e-6)


def test_an_answer_without_the_marker_has_no_score() -> None:
    for texts in (list("abcde"), [*"abcd", "So the answer is"]):
        found = AnatomyOfALie(marker="So the answer is").scores(of_a_lie(MIXTURE, texts))
        assert found.answer is None
        assert "does not say" in (found.reason or "")


def test_surprisal_is_that_of_the_worked_example() -> None:
    from saccade_server.detectors.anatomy_of_a_lie import surprisal

    assert surprisal(np.array([[2.0, 0, 1]]), MIXTURE) == pytest.approx([5.175029], abs=1e-6)
    shifted = MIXTURE | {"center": [1, -1, 0], "scale": [0.5, 2, 1]}
    assert surprisal(np.array([[2.0, -1, 1]]), shifted) == pytest.approx([5.175029], abs=1e-6)
    found = AnatomyOfALie().scores(of_a_lie(MIXTURE))
    vector = np.array([[found.values[name] for name in ("evidence", "conflict", "decision")]])
    assert found.answer == pytest.approx(surprisal(vector, MIXTURE)[0])
