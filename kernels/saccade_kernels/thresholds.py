"""From which score on a token counts as an attention sink; :mod:`~saccade_kernels.sinks` scores."""

from __future__ import annotations

import math


def default_threshold(hidden_size: int) -> float:
    """The paper's tau of 20, which was chosen at hidden size 4096, carried over to another size.

    phi cannot exceed sqrt(hidden_size), so a fixed 20 would be far stricter on a small model.
    """
    return 20.0 * math.sqrt(hidden_size / 4096)
