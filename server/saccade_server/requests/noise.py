"""Diffusion noise on an image as the vision tower sees it, for branches."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.kept import Kept
from saccade_server.models.prompt import PreparedImage

CHANNELS = 3

MOST_BYTES = 64 * 2**20
"""Of noise that is kept: it depends on the seed, the shape and its share alone, and most requests
name none of these, so theirs is the same for all images of a size."""

Seed = tuple[int, ...]


def noised(image: PreparedImage, kept: float, seed: Seed) -> PreparedImage:
    """sqrt(kept) x + sqrt(1 - kept) n on the normalised pixels x, with n ~ N(0, 1) by the seed.

    The Qwen families repeat a still image along time inside every patch, as [channel, time, pixel]:
    both copies get the same noise, for it is one image.
    """
    copies = image.copies
    pixels = image.pixels
    split = (-1, CHANNELS, copies, pixels.shape[-1] // (CHANNELS * copies))
    values = pixels.reshape(split) if pixels.ndim == 2 else pixels
    once = values[:, :, :1] if pixels.ndim == 2 else values
    mixed = np.float32(np.sqrt(kept)) * values
    mixed += _NOISE.noise(once.shape, seed, 1 - kept)
    return replace(image, pixels=mixed.reshape(pixels.shape), digest=digest_of(image, kept, seed))


def digest_of(image: PreparedImage, kept: float, seed: Seed) -> str:
    """Of the noised image: of what decides it, and not of its pixels once more."""
    content = repr(("noised", image.digest, kept, seed))
    return hashlib.sha256(content.encode()).hexdigest()


class NoiseCache(Kept[NDArray[np.float32]]):
    """The noise used last, within a budget of bytes."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(most_bytes, lambda noise: noise.nbytes)

    def noise(self, shape: tuple[int, ...], seed: Seed, variance: float) -> NDArray[np.float32]:
        """Normal numbers of mean 0 that the seed decides; not to be written."""

        def made() -> NDArray[np.float32]:
            found = np.random.default_rng(seed).standard_normal(shape, np.float32)
            found *= np.float32(np.sqrt(variance))
            found.setflags(write=False)
            return found

        return self.get((shape, seed, variance), made)


_NOISE = NoiseCache(MOST_BYTES)
