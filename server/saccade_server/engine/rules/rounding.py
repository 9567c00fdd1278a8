"""What no request may ask for with ``--batch-invariant``: gains that round twice."""

from __future__ import annotations

from collections.abc import Iterable
from math import frexp

from saccade_interventions.plan import Plan
from saccade_interventions.rules import MeasuredGains
from saccade_server.engine.request import EngineInfo

HALF = ("bfloat16", "float16")


def why_not_invariant(plans: Iterable[Plan], info: EngineInfo) -> str | None:
    """Why a request's tokens could depend on its neighbours, on a server that promises otherwise.

    A step that measures gains rounds before it multiplies; a row that is computed again after
    preemption is rounded once, behind the product (rules/gains.py).
    """
    if not info.batch_invariant or info.dtype not in HALF:
        return None
    rules = [plan.rule(MeasuredGains) for plan in plans]
    gains = [rule.gain for rule in rules if rule is not None and rule.layers]
    wrong = next((gain for gain in gains if gain and frexp(gain)[0] != 0.5), None)
    if wrong is None:
        return None
    return (
        f"with --batch-invariant in {info.dtype} a gain of measured heads must be a power of two, "
        f"such as 2, or 0; {wrong:g} is rounded in another place when a row is computed again"
    )
