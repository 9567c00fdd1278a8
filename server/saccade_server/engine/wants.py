"""What a row of a decoding sequence needs of a step beside inputs in fixed places."""

from __future__ import annotations

from enum import IntFlag, auto


class Wants(IntFlag):
    """Of one row; of a step, the union over its rows."""

    NOTHING = 0
    RULES = auto()  # its plan has rules, whose handlers are asked
    LAYERS = auto()  # something looks inside its layers that no padded step has
    PROBES = auto()  # a probe of its layers, where steps are not padded: those keep residuals
    COMBINATION = auto()  # its token is drawn from what a rule makes of several rows
    COUNT = auto()  # of the rows whose masses move
    CHOICE = auto()  # by the host, among candidates or plans
    LOGPROBS = auto()
