"""An engine over a tiny model, in either way of working."""

from functools import partial
from typing import Any

import pytest

from saccade_testing.engine import MakeCore, core_with

MODES: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "as-on-a-gpu": {"overlap": True, "padded_decode": True},
}


@pytest.fixture(params=MODES)
def make_core(request: pytest.FixtureRequest) -> MakeCore:
    """:func:`core_with` in either way of working: whatever holds for one must for the other."""
    return partial(core_with, **MODES[request.param])
