"""Diffusion noise on an image as the vision tower sees it (VCD)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from saccade_server.models.prompt import PreparedImage

CHANNELS = 3

MOST_BYTES = 64 * 2**20
"""Of noise that is kept: it depends on the seed, the shape and its share alone, and most requests
name none of these, so theirs is the same for all images of a size."""

Seed = tuple[int, ...]


def noised(image: PreparedImage, kept: float, seed: Seed) -> PreparedImage:
    """sqrt(kept) x + sqrt(1 - kept) n on the normalised pixels x, with n ~ N(0, 1) by the seed.

    The Qwen families repeat a still image along time inside every patch, as [channel, time, pixel]:
    both copies get the same noise, for it is one image. What decides the result is digested, and
    not its pixels once more.
    """
    copies = image.copies
    pixels = image.pixels
    split = (-1, CHANNELS, copies, pixels.shape[-1] // (CHANNELS * copies))
    values = pixels.reshape(split) if pixels.ndim == 2 else pixels
    once = values[:, :, :1] if pixels.ndim == 2 else values
    mixed = np.float32(np.sqrt(kept)) * values
    mixed += _NOISE.get(once.shape, seed, 1 - kept)
    content = repr(("noised", image.digest, kept, seed))
    digest = hashlib.sha256(content.encode()).hexdigest()
    return replace(image, pixels=mixed.reshape(pixels.shape), digest=digest)


class NoiseCache:
    """The noise used last, within a budget of bytes; for several threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held: OrderedDict[tuple[object, ...], NDArray[np.float32]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, shape: tuple[int, ...], seed: Seed, variance: float) -> NDArray[np.float32]:
        """Normal numbers of mean 0 that the seed decides; not to be written."""
        key = shape, seed, variance
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
                return found
        made = np.random.default_rng(seed).standard_normal(shape, np.float32)
        made *= np.float32(np.sqrt(variance))
        made.setflags(write=False)
        with self._lock:
            if key not in self._held and made.nbytes <= self._most:
                self._held[key] = made
                self._bytes += made.nbytes
            while self._bytes > self._most:
                _, dropped = self._held.popitem(last=False)
                self._bytes -= dropped.nbytes
        return made


_NOISE = NoiseCache(MOST_BYTES)
