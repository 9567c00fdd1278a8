"""Diffusion noise on an image as the vision tower sees it (VCD)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from saccade_server.models.prompt import PreparedImage
from saccade_server.models.views import View

CHANNELS = 3


def noised(image: PreparedImage, kept: float, seed: tuple[int, ...]) -> PreparedImage:
    """sqrt(kept) x + sqrt(1 - kept) n on the normalised pixels x, with n ~ N(0, 1) by the seed.

    The Qwen families repeat a still image along time inside every patch, as [channel, time, pixel]:
    both copies get the same noise, for it is one image.
    """
    copies = image.copies
    pixels = image.pixels
    split = (-1, CHANNELS, copies, pixels.shape[-1] // (CHANNELS * copies))
    values = pixels.reshape(split) if pixels.ndim == 2 else pixels
    once = values[:, :, :1] if pixels.ndim == 2 else values
    noise = np.random.default_rng(seed).standard_normal(once.shape, np.float32)
    mixed = np.float32(np.sqrt(kept)) * values + np.float32(np.sqrt(1 - kept)) * noise
    made = View(mixed.reshape(pixels.shape), image.grid, image.length, copies)
    return replace(image, pixels=made.pixels, digest=made.digest())
