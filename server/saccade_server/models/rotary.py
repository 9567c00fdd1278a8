"""Cosines and sines of a step's positions, once for all layers of a kind."""

from __future__ import annotations

import torch

from saccade_kernels import ops
from saccade_kernels.layers import Rotation
from saccade_server.models.spec import Rotary


class RotaryTable:
    """One :class:`Rotary` on a device."""

    def __init__(self, rotary: Rotary, device: torch.device) -> None:
        self._frequencies = torch.tensor(rotary.frequencies, dtype=torch.float32, device=device)
        self._factor = rotary.factor
        several = any(rotary.axis)
        self._axis = torch.tensor(rotary.axis, device=device) if several else None

    def at(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """The rotation of rows at ``positions``, int64 [axes, tokens]."""
        return ops.rotation(positions, self._frequencies, self._axis, self._factor, dtype)
