"""Sites as arrays: what is done to every (layer, head) of an edit is done to all at once."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.edits import Sites

REMEMBERED = 256
"""Lists of sites; a plan's edits share few, and each is looked at several times."""

Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Layer and head of every pair, an index of [layers, heads]; not to be written."""


@lru_cache(REMEMBERED)
def pairs(sites: Sites) -> Pairs:
    """Every (layer, head), in the order of the sites."""
    counts = [len(heads) for _, heads in sites]
    layers = np.repeat(np.array([layer for layer, _ in sites], np.intp), counts)
    heads = np.fromiter(chain.from_iterable(heads for _, heads in sites), np.intp, len(layers))
    layers.setflags(write=False)
    heads.setflags(write=False)
    return layers, heads
