"""Cosines and sines of a step's positions, once for all layers of a kind."""

from __future__ import annotations

import torch

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
        # [tokens, pairs], or [tokens, 1] where all pairs turn by one axis
        place = positions[:1] if self._axis is None else positions.index_select(0, self._axis)
        angle = place.T.to(torch.float32) * self._frequencies
        cos, sin = angle.cos() * self._factor, angle.sin() * self._factor
        cos, sin = cos.to(dtype), sin.to(dtype)
        return Rotation(torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None])
