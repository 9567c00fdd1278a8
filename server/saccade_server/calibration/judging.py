"""What a strength does to prompts that it was not found on, and which one to take.

Of prompts whose right answer is known: how much its log-probability rises. Of conversations that
end with the assistant's message (CAA): how much the log-probability of a token rises in messages of
the positive class, less those of the negative one. Classes count the same, whatever their size.

A strength *ruins* answers, and is not taken, if

- of the answers of a class that are right without it, more than one in twenty becomes wrong;
- or the messages of the positive class become less likely: these are sound texts, and a model that
  steering favours should not find them stranger than before;
- or of the prompts whose answers are to be kept, more than one in twenty becomes wrong that was
  right;
- or the model's numbers overflow.

Of the rest the one with the largest gain counts, if the gain exceeds three standard errors: it is
the best of many, and the best of many looks good by chance. At its place the weakest strength is
taken whose gain lies within one standard error of that (the one-standard-error rule of Breiman et
al., 1984).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from saccade_server.calibration.scoring import Score

MOST_LOST = 1 / 20
STANDARD_ERRORS = 3.0

Kind = Literal["answers", "messages"]


@dataclass(frozen=True)
class Setting:
    """``place``: the residual that is steered; None: wherever the artifact says."""

    place: int | None
    strength: float


@dataclass(frozen=True)
class Trial:
    """What a strength did on the held-out prompts. ``ruins`` says how, if it does.

    ``right`` counts answers that are right under it; ``gain`` and ``error`` (standard) are in nats.
    """

    gain: float
    error: float
    right: int
    ruins: str | None = None


@dataclass(frozen=True)
class Judge:
    """The held-out prompts, and what the plain model makes of them.

    ``lengths``: tokens of the continuations. ``kept``: of the prompts whose answers are to be kept.
    """

    kind: Kind
    positive: Sequence[bool]
    lengths: Sequence[int]
    plain: Sequence[Score]
    kept: Sequence[Score] = ()

    def trial(self, scores: Sequence[Score], kept: Sequence[Score] | None = None) -> Trial:
        """Compare with plain; ``kept`` None: not asked, since nothing depends on them."""
        right = sum(score.right for score in scores)
        if any(math.isinf(score.logprob) for score in (*scores, *(kept or ()))):
            return Trial(-math.inf, 0.0, right, "the model's numbers overflow")
        gains = self._gains(scores)
        by_class = [
            [g for g, p in zip(gains, self.positive, strict=True) if p is c] for c in (True, False)
        ]
        weight = 0.5 if self.kind == "answers" else 1.0
        gain = weight * sum(map(statistics.fmean, by_class))
        variances = [statistics.variance(found) / len(found) for found in by_class]
        error = weight * math.sqrt(sum(variances))
        ruins = self._ruins(scores, gains) or self._loses(kept)
        return Trial(gain, error, right, ruins)

    def _gains(self, scores: Sequence[Score]) -> list[float]:
        """Of each prompt: of a whole answer, or of a message's tokens, towards its class."""
        found = []
        for after, before, positive, length in zip(
            scores, self.plain, self.positive, self.lengths, strict=True
        ):
            change = after.logprob - before.logprob
            if self.kind == "messages":
                change *= (1 if positive else -1) / length
            found.append(change)
        return found

    def _ruins(self, scores: Sequence[Score], gains: Sequence[float]) -> str | None:
        if self.kind == "messages":
            sound = statistics.fmean(g for g, p in zip(gains, self.positive, strict=True) if p)
            return "positive messages become less likely" if sound < 0 else None
        for name, chosen in (("positive", True), ("negative", False)):
            pairs = zip(self.plain, scores, self.positive, strict=True)
            if _too_many_lost([(before, after) for before, after, p in pairs if p is chosen]):
                return f"right answers of the {name} class are lost"
        return None

    def _loses(self, kept: Sequence[Score] | None) -> str | None:
        if kept is None or not _too_many_lost([*zip(self.kept, kept, strict=True)]):
            return None
        return "answers that are to be kept are lost"


def choose(trials: Mapping[Setting, Trial]) -> Setting | None:
    """The setting to take; None if none helps beyond chance."""
    sound = {setting: trial for setting, trial in trials.items() if trial.ruins is None}
    if not sound:
        return None
    best = max(sound, key=lambda setting: (sound[setting].gain, -abs(setting.strength)))
    top = sound[best]
    if top.gain <= STANDARD_ERRORS * top.error:
        return None
    near = [
        setting
        for setting, trial in sound.items()
        if setting.place == best.place and trial.gain >= top.gain - top.error
    ]
    return min(near, key=lambda setting: abs(setting.strength))


def _too_many_lost(pairs: Sequence[tuple[Score, Score]]) -> bool:
    """Of (before, after): whether more than a few that were right are no longer."""
    right = [after.right for before, after in pairs if before.right]
    return right.count(False) > MOST_LOST * len(right)
