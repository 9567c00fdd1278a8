"""One method's plan, made of nothing but what the engine carries out.

A method may come from another package, so what its ``compile`` returns is looked at here, once a
request, before anything relies on it: kinds of rules and edits by their very classes, and the rest
by the form in which plans travel to the engine.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from saccade_interventions.base import Intervention
from saccade_interventions.context import Context
from saccade_interventions.edits import (
    HeadEdit,
    MassEdit,
    ResidualEdit,
    ScoreEdit,
    TagRun,
    Vectors,
)
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.foreign import ForeignError
from saccade_interventions.plan import Plan
from saccade_interventions.rules import KINDS

OURS = "saccade_interventions."
PARTS: dict[str, tuple[type, ...]] = {
    "rules": KINDS,
    "scores": (ScoreEdit,),
    "masses": (MassEdit,),
    "heads": (HeadEdit,),
    "residuals": (ResidualEdit,),
    "tags": (TagRun,),
    "vectors": (Vectors,),
}
"""Field of a plan -> what it may hold."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Plan).decode


def plan_of(method: Intervention, context: Context) -> Plan:
    """Compile one method.

    Raises:
        InterventionError: it refused; or its plan holds what the engine cannot carry out, then at
            ``method``.
    """
    try:
        plan = method.compile(context)
        check_own(plan)
    except ForeignError as error:
        raise _not_carried_out(f"{method.method_id()} {error}") from None
    if type(method).__module__.startswith(OURS):
        return plan
    try:  # what cannot be sent, or read there, must not go wrong on the way
        return _decode(_encode(plan))
    except (TypeError, ValueError, OverflowError) as error:
        message = f"{method.method_id()} makes a plan that the engine cannot read: {error}"
        raise _not_carried_out(message) from None


def check_own(plan: object) -> None:
    """Refuse a plan with a rule or an edit that the engine does not know.

    Raises:
        ForeignError: there is one.
    """
    if type(plan) is not Plan:
        raise ForeignError("a plan", type(plan))
    for field, kinds in PARTS.items():
        found: Iterable[object] = getattr(plan, field)
        for part in found:
            if type(part) not in kinds:
                raise ForeignError("a rule" if field == "rules" else "an edit", type(part))


def _not_carried_out(message: str) -> InterventionError:
    return InterventionError(Code.UNSUPPORTED_MODEL, message, "method")
