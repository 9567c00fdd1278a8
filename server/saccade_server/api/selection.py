"""Which interventions a request runs under, from all the places that may say so.

    field ``interventions``           the entries themselves; null and [] are none
    field ``vllm_xargs``              the same list as a JSON text, for tools that pass texts only
    field ``intervention_profile``    a profile by name
    header ``X-Intervention-Profile`` the same, for gateways
    ``model`` "<model>+<profile>"     the same, for tools that can choose nothing but a model

Entries replace those of a profile. Two places that say different things are refused: nothing goes
before another in silence. A request that names nothing anywhere gets the server's default profile,
if it has one; [] and null are a choice, and mean none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request

from saccade_interventions import suggest
from saccade_interventions.base import Intervention
from saccade_interventions.errors import InterventionError, brief
from saccade_interventions.parsing import FIELD, MOST_ENTRIES
from saccade_server.api.body.parsing import load
from saccade_server.api.body.schemas import Selecting
from saccade_server.api.errors import BadRequest, NotFound, bounded
from saccade_server.api.layers.record import Record, record_of
from saccade_server.api.services import Services
from saccade_server.requests.errors import RequestError

PROFILE_HEADER = "x-intervention-profile"
PROFILE_FIELD = "intervention_profile"
XARGS = "vllm_xargs"

Interventions = tuple[Intervention, ...]


@dataclass(frozen=True)
class Selection:
    """What a request asked for.

    ``profile`` is where its interventions come from, None if the request named them itself;
    ``model`` is the model's name as the request has it. ``by_default``: the request named nothing,
    and the profile is the server's default.
    """

    interventions: Interventions
    profile: str | None
    model: str
    by_default: bool = False

    @asynccontextmanager
    async def explained(self) -> AsyncIterator[None]:
        """Say in a refusal of an entry that the request did not name where it comes from."""
        try:
            yield
        except (InterventionError, RequestError) as error:
            if self.by_default and (error.param or "").startswith(FIELD):
                error.message += (
                    f" (of the server's default profile {brief(self.profile)}; "
                    "a request with interventions [] runs without it)"
                )
            raise


def select(services: Services, body: Selecting, request: Request) -> Selection:
    """Read every place, and note in the request's record what was chosen.

    Raises:
        ApiError: a model or profile that is not there, or two places that disagree.
        InterventionError: an entry is not valid.
    """
    alias = services.check_model(body.model)
    name = _profile(services, body, request.headers, alias)
    model = body.model or services.settings.served_model_name
    own = _entries(services, body, record_of(request.scope))
    if own is not None:
        return _noted(request, Selection(own, None, model))
    by_default = name is None and services.profiles.default is not None
    name = services.profiles.default if by_default else name
    bundle = services.profiles[name].interventions if name is not None else ()
    return _noted(request, Selection(bundle, name, model, by_default))


def _noted(request: Request, selection: Selection) -> Selection:
    record = record_of(request.scope)
    record.model, record.profile = selection.model, selection.profile or ""
    record.interventions = tuple(item.method_id() for item in selection.interventions)
    return selection


def _profile(
    services: Services, body: Selecting, headers: Headers, alias: str | None
) -> str | None:
    """The one profile that is named, wherever that is."""
    named = [("model", alias), (PROFILE_FIELD, body.intervention_profile)]
    named += [(PROFILE_HEADER, value.strip()) for value in headers.getlist(PROFILE_HEADER)]
    given = [(place, name) for place, name in named if name]
    for place, name in given:
        if name not in services.profiles:
            hint = suggest.hint(name, services.profiles, "GET /v1/profiles lists them.")
            message = f"There is no profile {brief(name)}; {hint}"
            raise NotFound(message, code="profile_not_found", param=place)
        if name != given[0][1]:
            message = f"{given[0][0]} and {place} name different profiles; name one."
            raise BadRequest(message, code="intervention_conflict", param=place)
    return given[0][1] if given else None


def _entries(services: Services, body: Selecting, record: Record) -> Interventions | None:
    """The entries that the request has itself; None if it has no place for them."""
    own = compatible = None
    if "interventions" in body.model_fields_set:
        own = _parsed(services, body.interventions, record)
    if body.vllm_xargs:
        compatible = _from_xargs(services, body.vllm_xargs, record)
    if own is None or compatible is None:
        return compatible if own is None else own
    if own != compatible:
        message = "interventions and vllm_xargs.interventions differ; give one of them."
        raise BadRequest(message, code="intervention_conflict", param=f"{XARGS}.interventions")
    return own


def _parsed(services: Services, value: object, record: Record) -> Interventions:
    """The entries, whose methods the record has by their names even if one of them is refused."""
    entries = value[:MOST_ENTRIES] if isinstance(value, list) else ()
    given = (entry.get("method") if isinstance(entry, dict) else None for entry in entries)
    known = services.registry.methods
    record.interventions = tuple(
        name if isinstance(name, str) and name in known else "" for name in given
    )
    return services.parse(value)


def _from_xargs(services: Services, xargs: dict[str, Any], record: Record) -> Interventions | None:
    unknown = sorted(xargs.keys() - {"interventions"})
    if unknown:
        param = f"{XARGS}.{bounded(unknown[0], 64)}"
        message = f"{XARGS} may hold interventions, and nothing else."
        raise BadRequest(message, code="unsupported_parameter", param=param)
    text = xargs.get("interventions")
    if text is None:
        return None
    param = f"{XARGS}.interventions"
    if not isinstance(text, str):
        raise BadRequest("The list of interventions is given here as a JSON text.", param=param)
    try:
        return _parsed(services, load(text.encode()), record)
    except InterventionError as error:
        raise error.within(XARGS) from None
    except BadRequest as error:
        message = error.message.replace("The body", "The text")
        raise BadRequest(message, code=error.code, param=param) from None
