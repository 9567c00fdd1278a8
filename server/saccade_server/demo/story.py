"""What is in a sample image, and whether an answer says so. Loads neither torch nor a model."""

from __future__ import annotations

import json
from dataclasses import dataclass

from . import SAMPLES_PATH, sample_path
from .questions import things_named
from .scenes import Thing


@dataclass(frozen=True)
class Verdict:
    """An answer against the reference. ``absent``: named and not there; ``missed``: the reverse."""

    right: bool
    absent: tuple[Thing, ...]
    missed: tuple[Thing, ...]

    def __str__(self) -> str:
        if self.right:
            return "right"
        reasons = [f"no {thing} there" for thing in self.absent]
        reasons += [f"misses the {thing}" for thing in self.missed]
        return "wrong: " + (", ".join(reasons) or "not the reference's words")


@dataclass(frozen=True)
class Story:
    """One sample's entry in ``samples.json``. ``plain_answer``: the model's, as it is."""

    name: str
    question: str
    reference: str
    plain_answer: str
    things: tuple[Thing, ...]

    @classmethod
    def of(cls, name: str) -> Story:
        """Read the story of one of SAMPLES.

        Raises:
            ValueError: there is no such sample.
        """
        sample_path(name)
        entries = json.loads((SAMPLES_PATH / "samples.json").read_text(encoding="utf-8"))
        (entry,) = (entry for entry in entries if entry["name"] == name)
        things = tuple(Thing(item["color"], item["shape"]) for item in entry["things"])
        return cls(name, entry["question"], entry["reference"], entry["plain_answer"], things)

    def judge(self, answer: str) -> Verdict:
        """Right is the reference word for word, as in ``saccade eval scenes``."""
        named = dict.fromkeys(things_named(answer))
        absent = tuple(thing for thing in named if thing not in self.things)
        missed = tuple(thing for thing in self.things if thing not in named)
        return Verdict(answer == self.reference, absent, missed)
