"""Examined positions are the same found bit by bit as all at once, and go with their pages."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from saccade_interventions.edits import TagRun
from saccade_interventions.plan import Plan
from saccade_kernels.batch import PAGE
from saccade_kernels.controls import NEVER_ATTEND, ControlShape
from saccade_server.engine.batch import slots_of
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.rules.examined import Examined, examined
from saccade_server.engine.sequence import Sequence

LENGTH = 3 * PAGE + 5
TAGS = (TagRun(3, 40, 2), TagRun(60, 70, NEVER_ATTEND), TagRun(150, LENGTH, 1))


def sequence() -> Sequence:
    plan = replace(Plan(ControlShape(2, 2, 4), LENGTH, 50, 4), tags=TAGS, generated_tag=3)
    sampling = SamplingParams(max_tokens=90)
    request = GenerateRequest(
        request_id="r", tokens=tuple(range(LENGTH)), sampling=sampling, plan=plan
    )
    made = Sequence(request)
    made.pages = [9, 2, 5, 4, 8]
    return made


def one_by_one(made: Sequence, start: int, end: int) -> Any:
    assert made.plan is not None
    base = [*made.plan.base_tags().tolist(), *[made.plan.generated_tag] * end]
    slots = slots_of(made.pages, start, end)
    kept = [at for at in range(start, end) if base[at] != NEVER_ATTEND]
    return [[slots[at - start] for at in kept], kept, [base[at] for at in kept]]


@pytest.mark.parametrize("ends", [[LENGTH], [10, 65, 64, 130, LENGTH + 7, 68, LENGTH + 8]])
def test_what_is_known_is_what_there_is(ends: list[int]) -> None:
    made, known = sequence(), Examined()
    for end in ends:
        np.testing.assert_array_equal(known.until(made, end), one_by_one(made, 0, end))
    np.testing.assert_array_equal(examined(made, 62, 181), one_by_one(made, 62, 181))


def test_slots_are_those_of_the_pages() -> None:
    pages = [9, 2, 5, 4, 8]
    for start in (0, 1, 63, 64, 65, 200):
        for end in (start, start + 1, start + 63, 255, 256, 257, 320):
            wanted = [pages[at // PAGE] * PAGE + at % PAGE for at in range(start, end)]
            np.testing.assert_array_equal(slots_of(pages, start, end), wanted)


def test_a_preempted_sequence_has_other_pages() -> None:
    made, known = sequence(), Examined()
    known.until(made, 100)
    made.pages, made.preemptions = [7, 6, 3], 1
    np.testing.assert_array_equal(known.until(made, 80), one_by_one(made, 0, 80))
