"""What some methods did to captions of held-out scenes, for who shows a single answer.

The figures are those of a committed benchmark; ``benchmarks/methods.py`` writes them here, because
the benchmark's own file is not part of the distribution.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from . import EFFECTS_PATH
from .splits import Split

PLAIN: Final = "none"
"""The setting without interventions."""

SHOWN: Final = (PLAIN, "vcd", "var", "pai")
"""One method that helps, and the two best known that edit attention; all at their defaults."""

SPLIT: Final = Split.COUNTERFACTUAL
METRICS: Final = ("CHAIR_s", "exact")
INTERVAL: Final = ("value", "low", "high")


@dataclass(frozen=True)
class Share:
    """A share of captions, with its 95 % interval; ``change``: from none, in the same unit."""

    value: float
    low: float
    high: float
    change: Share | None = None

    @classmethod
    def of(cls, measured: Mapping[str, Any]) -> Share:
        value, low, high = (float(measured[name]) for name in INTERVAL)
        change = measured.get("change")
        return cls(value, low, high, cls.of(change) if change else None)


@dataclass(frozen=True)
class Effect:
    """``absent``: captions that name something absent (CHAIR_s); ``exact``: the reference, word
    for word. ``verdict`` is the benchmark's, over all of its splits.
    """

    verdict: str
    absent: Share
    exact: Share


def extract(result: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What ships, from a result of ``eval scenes``; ``source`` is the result's path."""
    settings = {setting["name"]: setting for setting in result["settings"]}
    shown = {name: settings[name] for name in SHOWN}
    return {
        "source": source,
        "commit": result["commit"],
        "date": result["date"],
        "split": SPLIT.value,
        "captions": shown[PLAIN]["splits"][SPLIT.value]["exact"]["n"],
        "settings": {name: _extract(setting) for name, setting in shown.items()},
    }


def _extract(setting: Mapping[str, Any]) -> dict[str, Any]:
    metrics = setting["splits"][SPLIT.value]
    return {
        "interventions": setting["interventions"],
        "verdict": setting["verdict"],
        **{name: _share(metrics[name]) for name in METRICS},
    }


def _share(measured: Mapping[str, Any]) -> dict[str, Any]:
    """A measured share without what nobody is shown."""
    change = measured["change"]
    return {
        **{name: measured[name] for name in INTERVAL},
        "change": {name: change[name] for name in INTERVAL} if change else None,
    }


def document() -> dict[str, Any]:
    """What ships, as it is written."""
    found: dict[str, Any] = json.loads(EFFECTS_PATH.read_text(encoding="utf-8"))
    return found


def effects(shipped: Mapping[str, Any]) -> dict[str, Effect]:
    """The settings of SHOWN, in that order, from what :func:`document` returns."""
    return {
        name: Effect(setting["verdict"], *(Share.of(setting[metric]) for metric in METRICS))
        for name, setting in shipped["settings"].items()
    }
