"""What calibrating a detector found, as JSON and in sentences.

A threshold is a field of an entry of ``detectors``: whoever asks sets it, and this says with which
rates on how many answers of which model it was found. It holds for no other model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from saccade_server.demo.rates import wilson
from saccade_server.detectors.calibrating import Calibrated
from saccade_server.detectors.roc import Threshold


def as_json(made: Calibrated, entry: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """The entry to send, and what is known of it."""
    return {
        "entry": dict(entry),
        "model": fingerprint,
        "area": {**vars(made.area)},
        "calibrated_on": _rates(made.found),
        "held_out": _rates(made.held_out),
        **({"components": made.components} if made.density is not None else {}),
    }


def sentences(document: Mapping[str, Any]) -> Iterator[str]:
    """The same to be read."""
    area = document["area"]
    yield (
        f"area under the ROC curve {area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}], "
        f"{area['positives']} wrong and {area['negatives']} right answers"
    )
    if area["low"] <= 0.5:
        yield "The interval reaches 0.5: on these answers it does no better than chance."
    kept = document["held_out"]
    for name, what, count in (
        ("false_positive_rate", "right", "negatives"),
        ("true_positive_rate", "wrong", "positives"),
    ):
        if kept[name] is not None:
            share, (low, high) = kept[name], wilson(kept[name], kept[count])
            yield (
                f"flags {share:.1%} [{low:.1%}, {high:.1%}] of {kept[count]} {what} answers that "
                "were kept apart"
            )
    yield f"A request to this model ({document['model'] or 'no fingerprint'}) names it so:"
    yield json.dumps({"detectors": [document["entry"]]})


def _rates(found: Threshold) -> dict[str, Any]:
    rates = {name: None if math.isnan(value) else value for name, value in vars(found).items()}
    return {name: value for name, value in rates.items() if name != "value"}
