"""Memory that nobody holds, full of garbage: on a GPU it is never as clean as in a fresh test."""

from collections.abc import Callable
from functools import partial

import torch

from saccade_server.engine.decode import PaddedDecoder, StepVariant


def noise(tensor: torch.Tensor) -> None:
    """Fill with random bytes: they are floats, page numbers or tags, as somebody reads them."""
    flat = tensor.view(-1).view(torch.uint8)
    flat.copy_(torch.randint(0, 256, flat.shape, dtype=torch.uint8))


class Recorder:
    """Stands for CUDA graphs; leaves garbage in the block before and behind every variant.

    Parameters of stages are written with the step's inputs, and read behind it or ahead of it. What
    runs ahead of the step leaves the step's inputs as they are.
    """

    def __init__(self, decoder: PaddedDecoder) -> None:
        self._decoder = decoder
        noise(decoder._uploaded)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        noise(self._decoder._uploaded)

        def replay() -> None:
            run()
            noise(self._decoder._block)

        return run if self._is_ahead(run) else replay

    def _is_ahead(self, run: Callable[[], None]) -> bool:
        assert isinstance(run, partial), "what PaddedDecoder.idle returns"
        (variant,) = run.args
        if isinstance(variant, StepVariant):
            return False
        return self._decoder.stages._stages[variant.stage].ahead

    def used(self) -> int:
        return 0
