"""The detectors that there are, by name, and what is told about one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from saccade_server.detectors.anatomy_of_a_lie import AnatomyOfALie
from saccade_server.detectors.base import Detector
from saccade_server.detectors.fai import FAI
from saccade_server.detectors.sinks import Sinks
from saccade_server.detectors.svar import SVAR
from saccade_server.detectors.vas import VAS
from saccade_server.detectors.vhd import VHD
from saccade_server.detectors.waad import WAAD

KINDS: tuple[type[Detector], ...] = (AnatomyOfALie, FAI, Sinks, SVAR, VAS, VHD, WAAD)

DETECTORS: Mapping[str, type[Detector]] = MappingProxyType(
    {kind.detector_id(): kind for kind in KINDS}
)


def describe(name: str) -> dict[str, Any]:
    """All about one detector: facts and the JSON Schema of its entry.

    Raises:
        KeyError: there is none of this name.
    """
    kind = DETECTORS[name]
    schema = kind.model_json_schema()
    schema["required"] = ["name", *schema.get("required", [])]
    return {
        "id": name,
        "title": kind.title,
        "summary": kind.summary,
        "source": kind.source,
        "unit": kind.unit,
        "suspect": kind.suspect,
        "needs_image": kind.needs_image,
        "schema": schema,
    }
