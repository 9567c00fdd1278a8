"""Strengths that tuning tries for each method, weakest first, the default ``{}`` at its place.

Of one field, the weaker value is the one nearer to neutral; of factors, whose neutral value is 1,
the one whose logarithm is nearer to 0. Several factors add up. An entry that changes another field
besides, or alone, comes behind the one that it adds to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

GRIDS: Final[Mapping[str, tuple[Mapping[str, Any], ...]]] = {
    "act": ({"beta": 0.7}, {}, {"theta": 0.05}, {"beta": 0.1}),
    "adaptvis": ({"w1": 0.8, "w2": 1.2}, {"w1": 0.8, "w2": 2.0}, {}, {"w1": 1.5, "w2": 0.5}),
    "dola": ({"strength": 0.25}, {"strength": 0.5}, {}, {"layers": "low"}),
    "head_scale": ({"gain": 1.1}, {"gain": 1.25}, {"gain": 1.5}, {"gain": 2.0}),
    "head_steering": ({"alpha": 0.5}, {"alpha": 1}, {"alpha": 2}, {"alpha": 4}, {}),
    "locore": ({}, {"beta": 0.5}, {"beta": 1.0}),
    "pai": ({"alpha": 0.05}, {"alpha": 0.1}, {}, {"alpha": 0.5}),
    "pai_contrast": ({}, {"gamma": 1.5}, {"gamma": 2.0}, {"gamma": 3.0}),
    "pasta": ({"alpha": 0.9}, {"alpha": 0.5}, {"alpha": 0.1}, {}),
    "scalingvis": ({}, {"w": 0.8}, {"w": 1.5}, {"w": 0.5}),
    "sgrs": ({"alpha": 0.3}, {}, {"alpha": 0.9}),
    "steering": ({"coefficient": 0.25}, {"coefficient": 0.5}, {}, {"coefficient": 2}),
    "vaf": ({"enhance": 1.05, "suppress": 1.0}, {}, {"enhance": 1.3, "suppress": 0.9}),
    "var": (
        {},
        {"move_fraction": 0.9},
        {"move_fraction": 0.9, "rho": 0.1, "min_visual_mass": 0.05},
    ),
    "vcd": ({"alpha": 0.25}, {"alpha": 0.5}, {"alpha": 0.5, "noise_step": 800}, {}),
    "vhr": ({"gain": 1.1}, {"gain": 1.25}, {"gain": 1.5}, {}),
}
"""``head_scale`` has no default gain; that of ``steering`` and ``head_steering`` is the artifact's,
and stands where artifacts that have none put it."""
