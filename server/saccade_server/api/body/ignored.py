"""Says which fields of a request had no effect: a header of the answer, and a line in the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from saccade_server.api.body.noeffect import IGNORED_HEADER, header, ignored_fields
from saccade_server.api.body.unsupported import named_as_known
from saccade_server.api.services import Services


def note_ignored(
    services: Services,
    body: BaseModel,
    known: Mapping[str, tuple[Any, ...]] | None = None,
    ignored: Iterable[str] = (),
) -> dict[str, str]:
    """Headers of the answer; none if every field counted.

    Args:
        services: with the log.
        body: the request.
        known: fields that are refused or ask for nothing, see foreign.py.
        ignored: paths that were found to change nothing already.
    """
    silent = named_as_known(body.model_extra or {}, known or {})
    names = [*ignored_fields(body, silent, services.prompts.template_reads), *ignored]
    if not names:
        return {}
    services.ignored.note(names)
    return {IGNORED_HEADER: header(names)}
