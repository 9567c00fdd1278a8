"""What a row of a decoding sequence needs of a step beside inputs in fixed places."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntFlag, auto


class Wants(IntFlag):
    """Of one row; of a step, the union over its rows."""

    NOTHING = 0
    RULES = auto()  # its plan has rules, whose handlers are asked
    LAYERS = auto()  # something looks inside its layers that no padded step has
    PER_HEAD_CLASSES = auto()  # some of its heads have key classes of their own
    CLASSES_FOUND = auto()  # which are found in its own step
    PROBES = auto()  # a probe of its layers, where steps are not padded: those keep residuals
    COMBINATION = auto()  # a stage changes its logits; in steps that are not padded, a handler
    OWN_TAG = auto()  # the class of its own token is found in its step
    COUNT = auto()  # of the rows whose masses move
    CHOICE = auto()  # a handler changes its logits or its token, or is told of them
    LOGPROBS = auto()


@dataclass(frozen=True)
class Wanted:
    """What a step's rows want together, as its launch asks: flags cost a call at every question."""

    rules: bool
    layers: bool
    probes: bool
    combination: bool
    per_head_classes: bool
    count: bool
    logprobs: bool
    search: Search

    @classmethod
    def of(cls, wants: Wants) -> Wanted:
        """The same as these flags."""
        names = [field.name for field in fields(cls) if field.name != "search"]
        found = {name: bool(wants & Wants[name.upper()]) for name in names}
        return cls(**found, search=Search.of(wants))


class Search(IntFlag):
    """What a padded step looks for inside its layers, for rows that ask; others share the step."""

    NOTHING = 0
    PER_HEAD_CLASSES = auto()  # key classes of single heads, which rows may have
    OWN_TAGS = auto()  # classes of the tokens of single rows

    @classmethod
    def of(cls, wants: Wants) -> Search:
        """What a step looks for whose rows want this."""
        found = cls.PER_HEAD_CLASSES if wants & Wants.PER_HEAD_CLASSES else cls.NOTHING
        return found | cls.OWN_TAGS if wants & Wants.OWN_TAG else found
