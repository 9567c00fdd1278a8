"""In which order decode steps are captured, and what is replayed; no GPU is needed for that."""

import gc
from collections.abc import Callable

import pytest
import torch

from saccade_server.engine.decode import StepVariant, Variant
from saccade_server.engine.graphs import CaptureError, capture
from saccade_server.engine.stages import StageVariant
from saccade_server.models.residual import Reach

FORMS = ((4, Reach.RESIDUALS), (4, Reach.NOWHERE), (1, Reach.NOWHERE))
STEPS = [StepVariant(size, *form) for size in (8, 2) for form in FORMS]
VARIANTS: list[Variant] = [StageVariant("free draw", 8), StageVariant("free draw", 2), *STEPS]


class Tape:
    """A recorder that only remembers."""

    def __init__(self) -> None:
        self.recorded: list[Callable[[], None]] = []
        self.collecting: list[bool] = []

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.collecting.append(gc.isenabled())
        assert torch.is_inference_mode_enabled()
        run()
        self.recorded.append(run)
        return run

    def used(self) -> int:
        return 2**20 * len(self.recorded)


def test_every_variant_is_recorded_in_order_and_replayed_by_name() -> None:
    seen: list[Variant] = []
    tape = Tape()
    prepared: list[Variant] = []

    def prepare(variant: Variant) -> Callable[[], None]:
        assert seen == prepared, "inputs are written right before they are read"
        prepared.append(variant)
        return lambda: seen.append(variant)

    play, summary = capture(prepare, VARIANTS, tape)
    assert seen == prepared == VARIANTS
    assert tape.collecting == [False] * 8
    assert gc.isenabled()
    seen.clear()
    some = [VARIANTS[at] for at in (5, 6, 4, 1)]
    for variant in some:
        play(variant)
    assert seen == some
    assert summary.variants == tuple(VARIANTS)


def test_the_operator_is_told_what_and_how_long() -> None:
    _, summary = capture(lambda _: lambda: None, VARIANTS, Tape())
    text = str(summary)
    assert text.startswith("captured 6 decode graphs and 2 of stages in ")
    assert text.endswith("8 MiB: batch sizes 2, 8; plain, and edited, or residual edits too")


@pytest.mark.parametrize(
    ("variants", "named"),
    [(STEPS, "a decode step of 8 sequences"), (VARIANTS, "a free draw of 8 sequences")],
)
@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (RuntimeError("operation not permitted when stream is capturing"), "--enforce-eager"),
        (torch.OutOfMemoryError("tried to allocate 2 GiB"), "^tried to allocate"),
    ],
)
def test_a_capture_that_fails_says_what_helps(
    error: RuntimeError, wanted: str, variants: list[Variant], named: str
) -> None:
    """Running out of memory has an explanation of its own, see memory.py."""

    def fail() -> None:
        raise error

    with pytest.raises(RuntimeError, match=wanted) as raised:
        capture(lambda _: fail, variants, Tape())
    assert isinstance(raised.value, CaptureError) == (wanted == "--enforce-eager")
    assert str(raised.value).startswith(named) or not isinstance(raised.value, CaptureError)
    assert gc.isenabled()
