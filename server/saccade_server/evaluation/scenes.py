"""``saccade eval scenes``: every setting on the same held-out scenes, through the serving path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from saccade_server.demo.splits import Split
from saccade_server.evaluation.answers import Answers
from saccade_server.evaluation.asking import Reply
from saccade_server.evaluation.errors import SettingRefused
from saccade_server.evaluation.items import TESTED, Item, caption_items, scene_items
from saccade_server.evaluation.measure import Measured, Scorer
from saccade_server.evaluation.scoring import score_caption
from saccade_server.evaluation.settings import NONE, Interventions, Setting
from saccade_server.evaluation.tuning import Trial, choose


@dataclass(frozen=True)
class Scale:
    """How much is asked; ``validation`` scenes are used for tuning, 0 for none."""

    scenes: int
    seeds: tuple[int, ...] = (0,)
    validation: int = 0


@dataclass(frozen=True)
class Tuned:
    """What the validation split said about one setting's grid."""

    setting: Setting
    tried: tuple[tuple[Interventions, Trial], ...]


@dataclass
class Outcome:
    """All that was found. ``refused``: settings that the server does not do, with its reason."""

    scale: Scale
    none: Trial | None = None
    measured: list[Measured] = field(default_factory=list)
    tuned: dict[str, Tuned] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


async def evaluate(
    answers: Answers,
    settings: Sequence[Setting],
    scale: Scale,
    announce: Callable[[str, int], None] = lambda what, asks: None,
) -> Outcome:
    """Ask everything and score it.

    Args:
        announce: called before each setting with its name and the number of questions.

    Raises:
        EvaluationError: the server failed.
    """
    outcome = Outcome(scale)
    items = scene_items(TESTED, scale.scenes, scale.seeds)
    scorer = Scorer(items)
    plain = Setting(NONE)
    announce(NONE, len(items))
    outcome.measured.append(scorer.measure(plain, NONE, await answers.of(plain, items)))
    if scale.validation:
        await _tune(answers, settings, outcome, announce)
    for setting in settings:
        tuned = outcome.tuned.get(setting.name)
        for role, chosen in _roles(setting, tuned):
            announce(f"{setting.name}, {role}", len(items))
            try:
                replies = await answers.of(chosen, items)
            except SettingRefused as refusal:
                outcome.refused[chosen.name] = str(refusal)
                continue
            outcome.measured.append(scorer.measure(chosen, role, replies))
    return outcome


def _roles(setting: Setting, tuned: Tuned | None) -> list[tuple[str, Setting]]:
    """The setting itself, and what tuning made of it unless that is the same."""
    found = [("as given", setting)]
    if tuned is not None and tuned.setting.interventions != setting.interventions:
        found.append(("tuned", tuned.setting))
    return found


async def _tune(
    answers: Answers,
    settings: Sequence[Setting],
    outcome: Outcome,
    announce: Callable[[str, int], None],
) -> None:
    """Try every grid on the validation split, and nowhere else."""
    items = caption_items(Split.VALIDATION, outcome.scale.validation)
    outcome.none = _trial(items, await answers.of(Setting(NONE), items))
    for setting in settings:
        announce(f"{setting.name}, validation", len(items) * len(setting.grid))
        tried: list[tuple[Interventions, Trial]] = []
        for candidate in setting.grid:
            try:
                replies = await answers.of(replace(setting, interventions=candidate), items)
            except SettingRefused as refusal:
                outcome.refused[f"{setting.name}: {_short(candidate)}"] = str(refusal)
                continue
            tried.append((candidate, _trial(items, replies)))
        if tried:
            best, _ = tried[choose([trial for _, trial in tried], outcome.none)]
            name = f"{setting.name}, tuned"
            outcome.tuned[setting.name] = Tuned(Setting(name, best), tuple(tried))


def _trial(items: Sequence[Item], replies: Sequence[Reply]) -> Trial:
    """CHAIR_s on the odd scenes, where the prior fails; exact captions on the even ones."""
    counts = [
        score_caption(item.example, reply.text) for item, reply in zip(items, replies, strict=True)
    ]
    return Trial(
        chair=_share([c["hallucinates"] for c in counts[1::2]]),
        exact=_share([c["exact"] for c in counts[::2]]),
    )


def _share(verdicts: Sequence[int]) -> float:
    return sum(verdicts) / len(verdicts)


def _short(interventions: Sequence[Mapping[str, Any]]) -> str:
    parts = (
        ", ".join(f"{key} {value}" for key, value in entry.items() if key != "method")
        for entry in interventions
    )
    return " + ".join(part or "defaults" for part in parts)
