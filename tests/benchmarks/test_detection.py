"""What is counted of detectors: labels from scenes, scores of things named, the page's table."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from detection import page
from detection.answers import Judged, Scored
from detection.figures import SIDES, figures, with_density

from saccade_server.demo.scenes import Thing
from saccade_server.detectors.registry import DETECTORS

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks/results/detectors-cpu-2core.json"
RNG = np.random.default_rng(1)


def test_the_page_says_what_the_record_says() -> None:
    text = (ROOT / "docs/detectors.md").read_text()
    assert page.written(text, json.loads(RECORD.read_text())) == text
    assert text.count("| ") > 40


def test_every_detector_is_measured_on_its_own_side() -> None:
    for name, kind in DETECTORS.items():
        assert SIDES[name] == kind.suspect
    assert page.NAMES.keys() == SIDES.keys()
    measured = json.loads(RECORD.read_text())["tasks"]["captions"]["measures"]
    assert measured.keys() == SIDES.keys()


def test_a_thing_named_has_the_mean_of_its_tokens() -> None:
    texts = ["A", " red", " cir", "cle", " and a", " blue", " square", "."]
    said = Scored("", texts, {"evidence": 0.5}, {"svar": np.array([9, 1, 2, 6, 9, math.nan, 4, 9])})
    assert list(said.mentions()) == [
        (Thing("red", "circle"), {"svar": 3, "evidence": 0.5}),
        (Thing("blue", "square"), {"svar": 4, "evidence": 0.5}),
    ]


def judged(count: int, **shifts: float) -> list[Judged]:
    """Half of them wrong, two of a scene; the scores of wrong ones are shifted."""
    found = []
    for number in range(count):
        wrong = bool(number % 2)
        scores = {name: RNG.normal() + wrong * shift for name, shift in shifts.items()}
        found.append(Judged(f"scene {number // 2}", wrong, scores))
    return found


def test_areas_are_on_the_suspicious_side_and_rates_of_other_scenes() -> None:
    shifts = {"svar": -2.0, "waad": -2.0, "decision": 0.0}
    made = figures(judged(200, **shifts), judged(200, **shifts))
    assert made["svar"]["value"] == pytest.approx(0.92, abs=0.05)
    assert made["waad"]["value"] == pytest.approx(0.08, abs=0.05)
    assert made["decision"]["low"] < 0.5 < made["decision"]["high"]
    line = made["svar"]["threshold"]
    assert line["false_positive_rate"] < 0.15
    assert line["true_positive_rate"] > 0.3
    assert "vhd" not in made
    assert made["svar"]["without_score"] == 0


def test_a_density_is_of_the_right_answers_of_the_other_scenes() -> None:
    shifts = {"evidence": 0.0, "conflict": 5.0, "decision": 0.0}
    found, others = judged(60, **shifts), judged(200, **shifts)
    with_density(found, others)
    right, wrong = (
        np.mean([one.scores["anatomy_of_a_lie"] for one in found if one.wrong is kind])
        for kind in (False, True)
    )
    assert wrong > right + 5
    few = judged(60, **shifts)
    with_density(few, judged(4, **shifts))
    assert "anatomy_of_a_lie" not in few[0].scores


def test_what_has_no_score_is_counted_and_left_out() -> None:
    found = judged(40, fai=1.0)
    found[3].scores["fai"] = math.nan
    made = figures(found, judged(8, fai=1.0))
    assert made["fai"]["without_score"] == 1
    assert made["fai"]["positives"] == 19
    assert made["fai"]["threshold"] is None
