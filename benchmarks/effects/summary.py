"""The short account of the page: what each method did, at its defaults and tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saccade_server.evaluation.statistics import SIGNIFICANCE
from saccade_server.evaluation.verdict import JUDGED

WORDS = ("helps", "mixed", "hurts", "no measurable effect", "changes no answer")
TUNED = ", tuned"
CORRECTED = "‡"


def comparisons(scenes: Mapping[str, Any]) -> int:
    """How many changes are judged, over all settings."""
    none, *others = scenes["settings"]
    return len(others) * len(none["splits"]) * len(JUDGED)


def methods_table(scenes: Mapping[str, Any]) -> str:
    """One line a method: the verdict at its defaults, and that of the strength tuning chose."""
    by_name = {setting["name"]: setting for setting in scenes["settings"]}
    level = SIGNIFICANCE / comparisons(scenes)
    header = ("method", "at its defaults", "tuned strength", "tuned")
    rows: list[Sequence[str]] = [header, ["---"] * len(header)]
    for name, setting in by_name.items():
        if name == "none" or name.endswith(TUNED):
            continue
        strength, effect = "not tuned", ""
        if (tuning := scenes["tuning"]["settings"].get(name)) is not None:
            strength = _chosen(tuning, setting)
            tuned = by_name.get(name + TUNED)
            effect = "the same" if tuned is None else _effect(tuned, level)
        rows.append((f"`{name}`", _effect(setting, level), strength, effect))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def counts(scenes: Mapping[str, Any]) -> str:
    """How many methods have which verdict, at their defaults and after tuning."""
    settings = [setting for setting in scenes["settings"] if setting["name"] != "none"]
    given = [setting for setting in settings if not setting["name"].endswith(TUNED)]
    tuned = {
        setting["name"].removesuffix(TUNED): setting["verdict"]
        for setting in settings
        if setting["name"].endswith(TUNED)
    }
    before = [setting["verdict"] for setting in given]
    after = [
        tuned.get(setting["name"], setting["verdict"])
        for setting in given
        if setting["name"] in scenes["tuning"]["settings"]
    ]
    return (
        f"Of {len(before)} methods at their defaults: {_tally(before)}. Of the {len(after)} that "
        f"were tuned, with the chosen strength: {_tally(after)}."
    )


def _tally(verdicts: Sequence[str]) -> str:
    return ", ".join(f"{word} {verdicts.count(word)}" for word in WORDS if word in verdicts)


def _effect(setting: Mapping[str, Any], level: float) -> str:
    """The verdict, and by which changes it came about, in points."""
    places = [place.split(" ", 1) for place in (*setting["better"], *setting["worse"])]
    parts = []
    for split, splits_metrics in setting["splits"].items():
        named = [
            _change(metric, splits_metrics[metric]["change"], level)
            for metric in JUDGED
            if [split, metric] in places
        ]
        if named:
            parts.append(f"{split}: {', '.join(named)}")
    return f"**{setting['verdict']}**" + (f"; {'; '.join(parts)}" if parts else "")


def _change(metric: str, change: Mapping[str, Any], level: float) -> str:
    mark = CORRECTED if change["sign_p"] < level else ""
    return f"{metric} {100 * change['value']:+.1f}{mark}"


def _chosen(tuning: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The fields that differ from the defaults, and whether the strength was within the limit."""
    changed = [
        f"{name} {value}"
        for entry, before in zip(tuning["chosen"], given["interventions"], strict=True)
        for name, value in entry.items()
        if before.get(name) != value
    ]
    text = f"`{', '.join(changed)}`" if changed else "the defaults"
    within = any(trial["qualifies"] for trial in tuning["tried"])
    return text if within else f"{text}; none was within the limit"
