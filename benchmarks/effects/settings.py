"""Which settings are compared: every registered method, at its defaults and over its grid.

Methods that need more than their name (an artifact, a highlight) are given it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from saccade_interventions.registry import Registry
from saccade_server.evaluation.settings import QUESTION, Setting, default_setting

NEEDS: Mapping[str, Mapping[str, Any]] = {
    "pasta": {"highlight": [QUESTION], "layers": [2, 3, 4]},
    "act": {"artifact": "<act>"},
    "steering": {"artifact": "<vectors>"},
    "head_steering": {"artifact": "<head_vectors>"},
    "head_scale": {"artifact": "<important>", "gain": 1.5},
    "head_ablation": {"artifact": "<harmful>"},
}
"""Method -> fields that it does not work without; ``<name>`` stands for an artifact."""

LEFT_OUT: Mapping[str, str] = {
    "function_vector": "it needs the vector of a task shown by examples in the prompt, and the "
    "demo world has no such tasks",
    "look_at": "it needs another region in every picture; `benchmarks/gaze.py` measures it",
}


def settings(
    methods: list[dict[str, Any]], artifacts: Mapping[str, str], failed: Mapping[str, str]
) -> tuple[list[Setting], dict[str, str]]:
    """One for each method of the server's listing, its grid of strengths included.

    Args:
        artifacts: name -> digest; ``failed``: name -> why there is none.

    Returns:
        The settings, and method -> why it is not compared.
    """
    found: list[Setting] = []
    missing, registry = dict(LEFT_OUT), Registry.discover()
    for method in methods:
        name, needs = method["id"], NEEDS.get(method["id"], {})
        wanted = [str(value)[1:-1] for value in needs.values() if str(value).startswith("<")]
        without = next((item for item in wanted if item in failed), None)
        if not method["supported"]:
            missing[name] = str(method["reason"])
        elif without is not None:
            missing[name] = failed[without]
        elif name not in LEFT_OUT:
            found.append(_with(default_setting(name, registry), _filled(needs, artifacts)))
    return found, {name: missing[name] for name in missing if name in {m["id"] for m in methods}}


def _filled(needs: Mapping[str, Any], artifacts: Mapping[str, str]) -> dict[str, Any]:
    return {
        field: artifacts[value[1:-1]] if str(value).startswith("<") else value
        for field, value in needs.items()
    }


def _with(setting: Setting, more: Mapping[str, Any]) -> Setting:
    """The same with more fields in every entry, unless the entry has them already."""

    def extended(entries: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        return tuple({**more, **entry} for entry in entries)

    grid = tuple(extended(entries) for entries in setting.grid)
    return replace(setting, interventions=extended(setting.interventions), grid=grid)
