"""What an engine counts of its steps, for whoever asks: numbers of every step are added up here.

Steps are counted by *form*: those of fixed places (decode.py) by their variant, all others as

    decode    a token of each of its sequences, in a batch of their number
    mixed     prompts, images, or rows that are to be looked at, as they come
"""

from __future__ import annotations

from collections import Counter, defaultdict

from saccade_server.engine.counts import BETWEEN_TOKENS, STEP_TOKENS, FormCount, Histogram
from saccade_server.engine.decode import StepVariant
from saccade_server.engine.stages import StageVariant
from saccade_server.engine.wants import Search
from saccade_server.models.residual import Reach

DECODE, MIXED = "decode", "mixed"


class StepTally:
    """Steps by form, and how many tokens they computed."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._forms: Counter[str] = Counter()
        self._variants: Counter[StepVariant | StageVariant] = Counter()
        self.tokens = Histogram.of(STEP_TOKENS)

    def note(self, form: str | tuple[StepVariant | StageVariant, ...], tokens: int) -> None:
        """Count a step: its form, or what was played for it."""
        self.tokens.observe(tokens)
        if isinstance(form, str):
            self._forms[form] += 1
            return
        for variant in form:
            self._variants[variant] += 1

    def forms(self, padded: str) -> tuple[FormCount, ...]:
        """All that there were; ``padded`` is what those of fixed places are called."""
        eager = [FormCount(form=name, count=count) for name, count in self._forms.items()]
        return (*eager, *(_counted(padded, *each) for each in self._variants.items()))


def _counted(form: str, variant: StepVariant | StageVariant, count: int) -> FormCount:
    if isinstance(variant, StageVariant):
        return FormCount(form=form, stage=variant.stage, size=variant.size, count=count)
    found = (each for each in Search if each in variant.search)
    return FormCount(
        form=form,
        size=variant.size,
        classes=variant.classes,
        sites="" if variant.reach is Reach.NOWHERE else variant.reach.name.lower(),
        search="+".join((each.name or "").lower() for each in found),
        count=count,
    )


class Gaps:
    """Times between the tokens of sequences: those of one step that waited equally, at once."""

    def __init__(self) -> None:
        self.seconds = Histogram.of(BETWEEN_TOKENS)
        self._since: defaultdict[float, int] = defaultdict(int)

    def note(self, since: float) -> None:
        """A sequence has its next token; the one before came at ``since``."""
        self._since[since] += 1

    def close(self, now: float) -> None:
        """All that were noted have it now."""
        for since, count in self._since.items():
            self.seconds.observe(now - since, count)
        self._since.clear()
