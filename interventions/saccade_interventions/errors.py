"""The one error a caller sees: what is wrong with an intervention, and where in the request.

    InterventionError(ValueError)
        code      a Code, stable and meant for programs
        param     JSON path of the offending value, such as ``interventions[0].layers[2]``
        status    the HTTP status it deserves

All of it is refused before any GPU work, but for :attr:`Code.DIVERGED`: that an edit drives the
model's numbers beyond what they can hold shows only when it runs. Capacity is the server's own
error, not one of these.
"""

from __future__ import annotations

import json
import reprlib
from enum import StrEnum


class Code(StrEnum):
    """What kind of problem it is."""

    UNKNOWN_METHOD = "intervention_unknown_method"
    UNKNOWN_FIELD = "intervention_unknown_field"
    INVALID_PARAMS = "intervention_invalid_params"
    LAYER_OUT_OF_RANGE = "intervention_layer_out_of_range"
    HEAD_OUT_OF_RANGE = "intervention_head_out_of_range"
    CONFLICT = "intervention_conflict"
    REQUIRES_IMAGE = "intervention_requires_image"
    VERSION_MISMATCH = "intervention_version_mismatch"
    UNSUPPORTED_MODEL = "intervention_unsupported_model"
    TARGET_NOT_FOUND = "intervention_target_not_found"
    SPEC_TOO_LARGE = "intervention_spec_too_large"
    ARTIFACT_NOT_FOUND = "artifact_not_found"
    ARTIFACT_MISMATCH = "intervention_artifact_mismatch"
    DIVERGED = "intervention_diverged"


class InterventionError(ValueError):
    """An intervention that cannot run as asked.

    ``param`` is relative to whoever raises: a method says ``layers[2]``, and :meth:`within` adds
    where the method stands in the request.
    """

    def __init__(self, code: Code, message: str, param: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param

    @property
    def status(self) -> int:
        """The HTTP status: 413 for a specification that is too large, 404 for a missing artifact,
        else 400.
        """
        return {Code.SPEC_TOO_LARGE: 413, Code.ARTIFACT_NOT_FOUND: 404}.get(self.code, 400)

    def within(self, prefix: str) -> InterventionError:
        """The same error with ``prefix`` in front of its path."""
        joint = "." if self.param and not self.param.startswith("[") else ""
        return InterventionError(self.code, self.message, f"{prefix}{joint}{self.param}")

    def __repr__(self) -> str:
        return f"InterventionError({self.code.value!r}, {self.message!r}, {self.param!r})"


def brief(value: object) -> str:
    """``value`` for a message: as JSON has it, cut where it gets long or deep."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer too long to be written down
        return "a very large number"


class _Json(reprlib.Repr):
    """Writes null, true, false and texts as JSON has them; users know no other words for them."""

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"

    def repr_str(self, value: str, level: int) -> str:
        cut = value if len(value) <= self.maxstring else value[: self.maxstring] + "…"
        return json.dumps(cut.encode(errors="replace").decode(), ensure_ascii=False)


_SHORT = _Json()
_SHORT.maxlevel = 3
_SHORT.maxstring = 100
