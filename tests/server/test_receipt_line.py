"""Receipts as one line each."""

from typing import Any

import pytest

from saccade_server.receipt_line import ranges, receipt_line, receipt_lines


def entry(**facts: Any) -> dict[str, Any]:
    base = {
        "method": "m",
        "status": "applied",
        "layers": [],
        "heads": 0,
        "rows": {"prompt": 0, "generated": 0, "cached": 0},
        "edits": {"evaluated": 0, "moved": None},
        "counters": {},
        "filled_in": {},
    }
    return base | facts


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"status": "neutral"}, "neutral"),
        ({"counters": {"contrasted": 15}}, "applied: 15 contrasted tokens"),
        (
            {"counters": {"draws": 4, "rejections": 1}},
            "applied: 4 draws, 1 rejections",
        ),
        (
            {
                "layers": [2, 3, 4],
                "heads": 18,
                "rows": {"prompt": 9, "generated": 14, "cached": 0},
                "edits": {"evaluated": 414, "moved": 381},
            },
            "applied: 23 rows, 18 heads of layers 2-4, moved 381 of 414",
        ),
        (
            {"layers": [3], "rows": {"prompt": 0, "generated": 4, "cached": 0},
             "filled_in": {"layers": [3], "coefficient": 0.5}},
            "applied: 4 rows, layer 3, coefficient 0.5 from the artifact",
        ),
        (
            {"layers": [3], "rows": {"prompt": 0, "generated": 1, "cached": 7}},
            "applied: 1 row and 7 cached, layer 3",
        ),
        (
            {"status": "no_effect", "edits": {"evaluated": 0, "moved": 0}},
            "no_effect: moved 0 of 0",
        ),
    ],
)  # fmt: skip
def test_lines(facts: dict[str, Any], line: str) -> None:
    assert receipt_line(entry(**facts)) == line


def test_a_line_for_each_intervention() -> None:
    answer = {"interventions_applied": [entry(), entry(method="n", status="cached")]}
    assert receipt_lines(answer) == ["m applied", "n cached"]
    assert receipt_lines({}) == receipt_lines({"interventions_applied": None}) == []


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([7], "7"), ([2, 3, 4], "2-4"), ([0, 2, 3, 9], "0, 2-3, 9")],
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
