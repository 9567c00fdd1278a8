"""What makes a request fail that the engine could have been asked for, without HTTP.

An intervention that cannot run is an InterventionError; what is wrong with the rest of a request,
or with all of it together, is a RequestError.
"""

from __future__ import annotations

from collections.abc import Sequence

from saccade_interventions.errors import Code, InterventionError


class RequestError(ValueError):
    """A request that the served model, or this server, can never run.

    ``code`` is stable and meant for programs; ``param`` is the JSON path of what is wrong;
    ``status`` is the HTTP status that it deserves.
    """

    status = 400

    def __init__(self, message: str, *, code: str = "invalid_value", param: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


class TooMuch(RequestError):
    """A request for more than the server gives, or than the request itself allows."""

    status = 413


def diverged(methods: Sequence[str]) -> InterventionError:
    """The error of a sequence whose numbers overflowed under these methods."""
    message = (
        f"The model's numbers overflowed under the request's interventions ({', '.join(methods)}): "
        "they are too strong for this model and its precision. Lower their strengths."
    )
    return InterventionError(Code.DIVERGED, message, "interventions")
