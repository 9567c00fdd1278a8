"""What a request costs the host at the sizes of a 7B, in counts: time alone would be noise.

A loop over 1,024 heads or 4,096 rows that calls anything shows in the number of calls.
"""

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saccade_server.engine.transfer import Uploader

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

MOST_CALLS = 8000
"""Of Python functions and built-in ones, for the heaviest request: steering all residuals, whose 31
edits are made one by one; 6,000 today, and less than 3,500 for most."""

MOST_SECONDS = 0.25
"""Of CPU, many times what it takes: only a loop that nobody meant is longer."""


@pytest.fixture(scope="module")
def hosting() -> Iterator[Any]:
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("hosting.requests")
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def made(hosting: Any) -> Any:
    """Requests of 4,096 tokens with four images, over a model that computes nothing."""
    stub = importlib.import_module("hosting.stub")
    core = stub.engine(stops=True, cache_tokens=2 * stub.MAX_LEN, max_programs=8)
    return hosting.Requests(core, *hosting.PROMPTS["4096"])


@pytest.fixture(scope="module")
def settings(made: Any) -> Any:
    return importlib.import_module("hosting.settings").settings(made.named)


NAMES = ("plain", "act", "adaptvis", "dola", "function_vector", "head_ablation", "head_scale")
NAMES += (
    "head_steering",
    "locore",
    "look_at",
    "m3id",
    "pai",
    "pai_contrast",
    "pasta",
    "scalingvis",
    "sgrs",
)
NAMES += ("steering", "vaf", "var", "vcd", "vhr")


def test_every_method_is_measured(made: Any, settings: Any) -> None:
    assert set(settings["default"]) == {"plain", *made._registry.methods} == set(NAMES)
    assert set(settings["heavy"]) >= set(NAMES) - {"plain", "m3id", "pai_contrast"}


def calls_of(work: Callable[[], Any]) -> int:
    """How many calls are made, this process's tracing apart."""
    count = 0

    def note(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("kind", ["default", "heavy"])
def test_nothing_is_done_row_by_row_or_head_by_head(kind: str, made: Any, settings: Any) -> None:
    found = {}
    for name, setting in settings[kind].items():
        made(setting, 0.99)  # what is made at first use
        prompt = calls_of(made._prompt)  # the prompt's offsets are the test's own
        found[name] = calls_of(lambda setting=setting: made(setting, 0.98)) - prompt
    assert max(found.values()) < MOST_CALLS, found


@pytest.mark.parametrize("kind", ["default", "heavy"])
def test_tables_travel_once_and_known_programs_not_at_all(
    kind: str, made: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few uploads a request, whatever it edits; programs that the tables hold are not sent."""
    sent: list[int] = []
    send = Uploader.__call__

    def counted(self: Uploader, *arrays: Any) -> Any:
        sent.append(sum(array.nbytes for array in arrays))
        return send(self, *arrays)

    monkeypatch.setattr(Uploader, "__call__", counted)
    uploads, saved = {}, {}
    for at, (name, setting) in enumerate(settings[kind].items()):
        if name == "vhr":  # its rows are its own
            continue
        seen = []
        for _ in range(2):
            sent.clear()
            made(setting, 0.97 + at * 1e-3)  # two methods may have the same program
            seen.append((len(sent), sum(sent)))
        uploads[name] = seen[0][0]
        saved[name] = seen[0][1] - seen[1][1]
    assert max(uploads.values()) <= 10, uploads
    without = {"adaptvis", "dola", "m3id", "pai_contrast", "plain", "sgrs", "vcd"}  # programs
    assert {name for name, some in saved.items() if some < 16_000} == without & set(saved)


def test_a_request_is_ready_in_far_less_than_a_step(made: Any, settings: Any) -> None:
    setting = settings["heavy"]["var + pai + head_scale"]
    made(setting, 0.96)
    began = time.process_time()
    made(setting, 0.95)
    assert time.process_time() - began < MOST_SECONDS
