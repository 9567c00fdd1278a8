"""``detectors`` of a request: what is refused, with its path, and what an entry has traced."""

from __future__ import annotations

from typing import Any

import pytest

from saccade_interventions.model_facts import ModelFacts
from saccade_server.detectors.registry import DETECTORS, describe
from saccade_server.requests.detectors import MOST_DETECTORS, parse_detectors, trace_of
from saccade_server.requests.errors import RequestError

MODEL = ModelFacts(layers=6, heads=6, kv_heads=2, head_dim=32, hidden_size=192)
VOCABULARY = {" may": 7, "May": 5, " Perhaps": 3}
LARGE = ModelFacts(layers=32, heads=32, kv_heads=32, head_dim=128, hidden_size=4096)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_has_its_facts_and_reads_a_trace(name: str) -> None:
    (detector,) = parse_detectors([{"name": name}])
    assert trace_of(detector, MODEL, VOCABULARY.get, "detectors[0]")
    facts = describe(name)
    assert facts["suspect"] in ("low", "high")
    assert facts["schema"]["properties"]["threshold"]
    assert detector.__class__.__module__.endswith(f".{name}")


def test_layers_are_those_of_the_papers_in_proportion() -> None:
    svar, waad = parse_detectors([{"name": "svar"}, {"name": "waad"}])
    assert trace_of(svar, LARGE, VOCABULARY.get, "")["masses"]["layers"] == list(range(5, 19))
    assert trace_of(svar, MODEL, VOCABULARY.get, "")["masses"]["layers"] == [1, 2, 3]
    assert trace_of(waad, LARGE, VOCABULARY.get, "")["attention"]["layers"] == [10, 13, 16, 18, 21]
    assert trace_of(waad, MODEL, VOCABULARY.get, "")["attention"]["layers"] == [2, 3, 4]


def test_hedging_words_are_those_that_are_one_token() -> None:
    (lie,) = parse_detectors([{"name": "anatomy_of_a_lie"}])
    assert trace_of(lie, MODEL, VOCABULARY.get, "")["token_shares"] == {"tokens": [[3, 5, 7]]}
    (lie,) = parse_detectors([{"name": "anatomy_of_a_lie", "words": ["perhaps", "hm"]}])
    assert trace_of(lie, MODEL, VOCABULARY.get, "")["token_shares"] == {"tokens": [[3]]}


WRONG: list[tuple[Any, str, str]] = [
    ({}, "detectors", "a list of objects"),
    (["svar"], "detectors[0]", "an object like"),
    ([{}], "detectors[0].name", "a name"),
    ([{"name": "savr"}], "detectors[0].name", 'did you mean "svar"?'),
    ([{"name": "svar"}, {"name": "vas", "tau": 1}], "detectors[1].tau", "unknown field of vas"),
    ([{"name": "svar", "layers": [1, -1]}], "detectors[0].layers[1]", "at least 0"),
    ([{"name": "svar", "layers": []}], "detectors[0].layers", "at least 1"),
    ([{"name": "svar", "reduce": "sum"}], "detectors[0].reduce", '"mean"'),
    ([{"name": "svar", "threshold": "low"}], "detectors[0].threshold", "must be a number"),
    ([{"name": "fai", "near": 9, "far": 8}], "detectors[0].far", "not below near"),
    ([{"name": "waad", "heads": 0}], "detectors[0].heads", "more than 0"),
    ([{"name": "anatomy_of_a_lie", "artifact": "x"}], "detectors[0].artifact", "form"),
    ([{"name": "svar"}] * (MOST_DETECTORS + 1), "detectors", f"at most {MOST_DETECTORS}"),
]


@pytest.mark.parametrize(("value", "path", "said"), WRONG)
def test_what_is_wrong_is_named_with_its_path(value: Any, path: str, said: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_detectors(value)
    assert refused.value.param == path
    assert said in refused.value.message


def test_a_layer_that_the_model_does_not_have_is_named() -> None:
    (detector,) = parse_detectors([{"name": "svar", "layers": [2, 6]}])
    with pytest.raises(RequestError, match="there is no layer 6") as refused:
        trace_of(detector, MODEL, VOCABULARY.get, "detectors[0]")
    assert refused.value.param == "detectors[0].layers[1]"


def test_a_model_without_images_has_no_image_to_look_at() -> None:
    text = ModelFacts(6, 6, 2, 32, 192, accepts_images=False)
    for name, kind in DETECTORS.items():
        (detector,) = parse_detectors([{"name": name}])
        if kind.needs_image:
            with pytest.raises(RequestError, match="the model takes none"):
                trace_of(detector, text, VOCABULARY.get, "detectors[0]")
        else:
            assert trace_of(detector, text, VOCABULARY.get, "detectors[0]")


def test_null_is_none() -> None:
    assert parse_detectors(None) == parse_detectors([]) == ()
