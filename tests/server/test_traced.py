"""Traces of the demo model through the server, against transformers in float64."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from saccade_client.arrays import TraceArray
from saccade_client.choices import ChatChoice
from saccade_server.config import engine_config
from saccade_server.demo import sample_path
from saccade_server.inprocess import open_server
from saccade_server.oneshot import ask
from saccade_testing.demo_arrays import Answered

QUESTION = "Describe the image."
TOKENS = 6
CLOSE = 2e-5
ALL: dict[str, Any] = {"reduce": [], "rows": "all"}
SOME: dict[str, Any] = {"layers": [3], "heads": [4], "reduce": [], "rows": {"answer": [1, 3]}}
RAISED = [{"method": "pai", "alpha": 0.5}]
STEADY = {"temperature": 0, "max_tokens": TOKENS, "logprobs": True, "top_logprobs": 4}
REQUESTS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "none": ([], {}),
    "attention": (
        [],
        {
            "attention": ALL | {"keys": "all"},
            "masses": ALL | {"recent": 3},
            "heatmaps": ALL | {"sinks": "mark"},
            "columns": ALL | {"keys": "all"},
            "sinks": True,
        },
    ),
    "plain shares": ([], {"masses": {"sinks": "keep", "recent": 0, "reduce": []}}),
    "dropped": ([], {"heatmaps": {"sinks": "drop", "reduce": []}}),
    "averages": ([], {"masses": {"reduce": ["layer", "head"]}, "heatmaps": True}),
    "values": (
        [],
        {
            "entropy": {"rows": "all"},
            "logit_lens": {"layers": [6], "top": 4},
            "saliency": {"layers": [2, 5]},
            "token_shares": {"tokens": [[287], [17, 267]]},
        },
    ),
    "raised": (RAISED, {"attention": ALL | {"keys": "all"}}),
    "raised, untraced": (RAISED, {}),
    "some": ([], {"attention": SOME}),
}


@pytest.fixture(scope="module")
def choices() -> dict[str, Any]:
    """The answers to one question, each with another trace, on one server and so on one cache."""

    async def main() -> Any:
        config = engine_config(None, enforce_eager=True, cache_tokens=8192)
        async with open_server(config, "demo") as client:
            found = {}
            for name, (methods, trace) in REQUESTS.items():
                sampling = STEADY | {"trace": trace | {"delivery": "inline", "max_bytes": 2**26}}
                images = [sample_path("absent-1")]
                answer = await ask(client, "demo", QUESTION, images, methods, sampling)
                found[name] = ChatChoice.model_validate(answer["choices"][0])
            return found

    return asyncio.run(main())


@pytest.fixture(scope="module")
def own(choices: Any) -> Answered:
    return Answered(sample_path("absent-1"), QUESTION, choices["none"].text)


def array(choices: Any, request: str, name: str) -> TraceArray:
    found: TraceArray = choices[request].trace[name]
    return found


def test_traces_change_no_token(choices: Any) -> None:
    for name in REQUESTS:
        other = "raised, untraced" if name == "raised" else "none"
        if name != "raised, untraced":
            assert choices[name].text == choices[other].text
            for one, two in zip(
                choices[name].logprobs.content, choices[other].logprobs.content, strict=True
            ):
                assert one.logprob == pytest.approx(two.logprob, abs=1e-5)


def test_attention_is_that_of_transformers(choices: Any, own: Answered) -> None:
    found = array(choices, "attention", "attention")
    assert found.axes == ("row", "layer", "head", "key")
    count = len(own.tokens) - 1  # the last token was drawn, and not read
    assert found.coordinates["row"] == found.coordinates["key"] == tuple(range(count))
    expected = own.attention[..., :count, :count].transpose(2, 0, 1, 3)
    assert np.abs(found.values - expected).max() < CLOSE


def test_the_other_kinds_are_made_of_it(choices: Any, own: Answered) -> None:
    weights = array(choices, "attention", "attention").values.astype(np.float64)
    start, end = own.image_span
    columns = array(choices, "attention", "columns")
    assert np.abs(columns.values - weights.sum(0)).max() < 1e-3
    heat = array(choices, "attention", "heatmaps.0")
    assert heat.shape[-2:] == (8, 8)
    assert np.abs(heat.values.reshape(*heat.shape[:3], 64) - weights[..., start:end]).max() < CLOSE
    masses = array(choices, "attention", "masses")
    scores = array(choices, "attention", "sinks.found").values  # [layer, key] of the prompt
    expected = _masses(weights, scores, (start, end), own.prompt)
    assert masses.coordinates["class"] == ("image", "sinks", "question", "recent", "rest")
    assert np.abs(masses.values - expected).max() < CLOSE
    marks = array(choices, "attention", "heatmaps.0.sinks")
    assert np.array_equal(marks.values.reshape(-1, 64), scores[:, start:end])
    assert marks.values.any()
    lifetime = array(choices, "attention", "sinks.lifetime")
    assert np.array_equal(lifetime.values, scores.sum(0))


def _masses(weights: Any, sinks: Any, image: tuple[int, int], prompt: int) -> Any:
    """[row, layer, head, class] of weights [row, layer, head, key], one class a key."""
    rows, layers = weights.shape[:2]
    found = np.zeros((*weights.shape[:3], 5))
    for row in range(rows):
        for layer in range(layers):
            for key in range(row + 1):
                if key < prompt and sinks[layer, key]:
                    kind = 1
                elif key > row - 3:
                    kind = 3
                elif image[0] <= key < image[1]:
                    kind = 0
                else:
                    kind = 2 if image[1] <= key < prompt else 4
                found[row, layer, :, kind] += weights[row, layer, :, key]
    return found


def test_shares_without_classes_of_sinks_and_recent_keys(choices: Any, own: Answered) -> None:
    found = array(choices, "plain shares", "masses")
    assert found.coordinates["class"] == ("image", "question", "rest")
    weights = own.attention[:, :, own.rows].transpose(2, 0, 1, 3)
    image = weights[..., slice(*own.image_span)].sum(-1)
    assert np.abs(found.at({"class": "image"}).values - image).max() < CLOSE
    assert np.abs(found.values.sum(-1) - 1).max() < CLOSE


def test_sinks_that_are_dropped_have_no_share(choices: Any) -> None:
    whole = array(choices, "attention", "heatmaps.0").values[-TOKENS:]
    marks = array(choices, "dropped", "heatmaps.0.sinks").values.astype(bool)
    dropped = array(choices, "dropped", "heatmaps.0").values
    expected = np.where(marks[None, :, None], 0, whole)
    assert np.abs(dropped - expected).max() < CLOSE


def test_averages_are_of_the_same_numbers(choices: Any) -> None:
    whole = array(choices, "attention", "heatmaps.0").values[-TOKENS:]
    found = array(choices, "averages", "heatmaps.0")
    assert found.axes == ("row", "layer", "height", "width")
    assert found.mean_over == {"head": tuple(range(6))}
    assert np.abs(found.values - whole.mean(2)).max() < CLOSE
    assert array(choices, "averages", "masses").shape == (TOKENS, 5)


def test_some_of_it_is_that_part_of_it(choices: Any, own: Answered) -> None:
    found = array(choices, "some", "attention")
    assert found.coordinates["row"] == (own.prompt, own.prompt + 1)
    assert (found.coordinates["layer"], found.coordinates["head"]) == ((3,), (4,))
    whole = array(choices, "attention", "attention")
    same = whole.values[own.prompt : own.prompt + 2, 3:4, 4:5, : own.prompt]
    assert np.abs(found.values - same).max() < CLOSE


def test_what_tokens_are_drawn_from(choices: Any, own: Answered) -> None:
    logs = own.logprobs(True)
    entropy = array(choices, "values", "entropy").values[-TOKENS:]
    assert np.abs(entropy + (np.exp(logs) * logs).sum(-1)).max() < 1e-4
    tokens = array(choices, "values", "logit_lens.tokens").values[:, 0]
    likeliest = np.argsort(-logs, -1)[:, :4]
    assert np.array_equal(tokens, likeliest)
    logprobs = array(choices, "values", "logit_lens.logprobs").values[:, 0]
    assert np.abs(logprobs - np.take_along_axis(logs, likeliest, -1)).max() < 1e-4
    shares = array(choices, "values", "token_shares").values
    assert np.abs(shares[:, 0] - np.exp(logs[:, 287])).max() < 1e-4
    assert np.abs(shares[:, 1] - np.exp(logs[:, [17, 267]]).sum(-1)).max() < 1e-4
    texts = choices["values"].trace.token_texts
    assert set(texts) == {str(token) for token in tokens.reshape(-1)}
    saliency = array(choices, "values", "saliency")
    assert saliency.shape == (TOKENS, 2, own.prompt)
    assert (saliency.values >= 0).all()
    assert saliency.values.any(-1).all()


def test_an_intervention_shows_where_it_acts(choices: Any, own: Answered) -> None:
    plain = array(choices, "attention", "attention")
    raised = array(choices, "raised", "attention")
    image = slice(*own.image_span)
    before = plain.values[own.prompt - 1, :, :, image].sum(-1)
    after = raised.values[own.prompt - 1, :, :, image].sum(-1)
    assert (after.mean() - before.mean()) > 0.01
    # Rows before the question are left alone.
    first = slice(0, image.stop)
    assert np.abs(plain.values[first] - raised.values[first])[..., : image.stop].max() < CLOSE
