"""Which edits of one head cannot be chained, and where: found before a plan exists.

Each function gives the first edit, and the first of its sites, that excludes one before it; None if
all is well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade_interventions.edits import MOST_GAIN, HeadEdit, MassEdit
from saccade_interventions.phases import PHASES, Phase
from saccade_interventions.sites import pairs

Place = tuple[int, int, Phase]
"""Layer, head, and the phase of the query row."""


def find_gated_chain(masses: Sequence[MassEdit]) -> tuple[MassEdit, MassEdit, Place] | None:
    """Two edits of one (layer, head, phase), one of them gated, and where.

    The gates of a table row are read once, before its transform: no chain could honour them.
    """
    if len(masses) < 2 or not any(edit.gates for edit in masses):
        return None
    first = np.full((*_sizes(masses), len(PHASES)), -1)
    gated = np.array([bool(edit.gates) for edit in masses])
    for number, edit in enumerate(masses):
        layers, heads = pairs(edit.sites)
        phases = [PHASES.index(phase) for phase in edit.phases]
        at = np.ix_(range(len(layers)), phases)
        before = first[layers, heads][at]
        clash = (before >= 0) & (gated[before] | gated[number])
        if clash.any():
            pair, phase = np.argwhere(clash)[0]
            place = int(layers[pair]), int(heads[pair]), edit.phases[phase]
            return masses[before[pair, phase]], edit, place
        first[layers[:, None], heads[:, None], phases] = np.where(before < 0, number, before)
    return None


def find_mixed_masses(masses: Sequence[MassEdit]) -> tuple[MassEdit, MassEdit, int, int] | None:
    """Two edits of one (layer, head) by different kinds of classes, and where.

    A head has the classes of the tags or its own, in all rows.
    """
    if len({edit.per_head_classes for edit in masses}) < 2:
        return None
    first = np.full(_sizes(masses), -1)
    per_head_classes = np.array([edit.per_head_classes for edit in masses])
    for number, edit in enumerate(masses):
        sites = pairs(edit.sites)
        before = first[sites]
        clash = (before >= 0) & (per_head_classes[before] != edit.per_head_classes)
        if clash.any():
            pair = int(np.argmax(clash))
            layer, head = (int(axis[pair]) for axis in sites)
            return masses[before[pair]], edit, layer, head
        first[sites] = np.where(before < 0, number, before)
    return None


def find_loud_chain(heads: Sequence[HeadEdit]) -> tuple[HeadEdit, Place] | None:
    """The edit that lets chained gains exceed MOST_GAIN at one (layer, head, phase), and where.

    A later gain scales an earlier shift, too, so a shift begins a chain of its own.
    """
    if not heads:
        return None
    totals = np.ones((*_sizes(heads), len(PHASES)))
    for edit in heads:
        layers, columns = pairs(edit.sites)
        phases = [PHASES.index(phase) for phase in edit.phases]
        at = layers[:, None], columns[:, None], phases
        chained = totals[at] * abs(edit.gain)
        totals[at] = chained if edit.shift is None else np.maximum(chained, 1.0)
        loud = totals[at] > MOST_GAIN
        if loud.any():
            pair, phase = np.argwhere(loud)[0]
            return edit, (int(layers[pair]), int(columns[pair]), edit.phases[phase])
    return None


def _sizes(edits: Sequence[MassEdit] | Sequence[HeadEdit]) -> tuple[int, int]:
    """Layers and heads that have room for all sites."""
    found = [pairs(edit.sites) for edit in edits]
    layers, heads = (
        1 + max((int(one[axis].max()) for one in found if one[axis].size), default=0)
        for axis in (0, 1)
    )
    return layers, heads
