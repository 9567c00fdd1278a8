"""The table of what loops may take falls by itself, and rises only where that is accepted."""

import json
from pathlib import Path

import pytest
from gpu import loop_table
from gpu.loop_table import followed, growth

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"
RECORDS = sorted(RESULTS.glob("compiled-triton-*.json"))

ALLOWED = {"decode": [[344, 350, 32]], "prefill": [[300, 300, 12], [400, 500, 24]]}


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_served_loops_take_no_more_than_the_table_allows(record: Path):
    """Where more are worth it: python benchmarks/compiled.py --accept, and the commit says why."""
    document = json.loads(record.read_text())
    found = {n: facts["loops"] for n, facts in document["forms"].items() if "loops" in facts}
    assert len(found) > 10
    allowed = loop_table.read(RESULTS / "instructions.json", document["versions"]["triton"])
    assert not list(growth(allowed, found))


def test_what_grew_is_named_with_both_numbers():
    found = {"decode": [[340, 360, 32]], "prefill": [[300, 300, 12], [400, 400, 24]]}
    assert list(growth(ALLOWED, found)) == ["decode took 344 to 350 and takes 340 to 360"]
    assert list(growth(ALLOWED, ALLOWED)) == []


def test_a_form_without_a_number_is_named():
    assert list(growth(ALLOWED, {"merge": []})) == ["merge is not in the table"]


def test_loops_that_were_joined_are_compared_as_a_whole():
    joined = {"prefill": [[700, 790, 36]]}
    assert list(growth(ALLOWED, joined)) == []
    worse = {"prefill": [[701, 790, 36]]}
    assert list(growth(ALLOWED, worse)) == ["prefill took 300 + 400 to 500 and takes 701 to 790"]


def test_numbers_follow_downwards_and_forms_that_are_gone_go():
    found = {"decode": [[300, 300, 32]], "merge": [[20, 20, 0]]}
    assert followed(ALLOWED, found, accept=False) == found


def test_a_rise_waits_for_acceptance():
    found = {"decode": [[345, 350, 32]]}
    assert followed(ALLOWED, found, accept=False) == {"decode": ALLOWED["decode"]}
    assert followed(ALLOWED, found, accept=True) == found


def test_each_compiler_has_its_part(tmp_path: Path):
    path = tmp_path / "instructions.json"
    assert loop_table.read(path, "3.7.1") == {}
    loop_table.write(path, "3.7.1", ALLOWED)
    loop_table.write(path, "3.6.0", {"decode": []})
    assert loop_table.read(path, "3.7.1") == ALLOWED
    assert loop_table.read(path, "3.6.0") == {"decode": []}
