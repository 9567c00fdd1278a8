"""What a server offers: its models, its intervention methods, and the result of a dry run."""

from typing import Any

from pydantic import AliasChoices, Field

from saccade_client.types import Reply, Wire


class Model(Wire):
    """A model the server answers for; `<model>+<profile>` names one with interventions built in."""

    id: str
    created: int = 0
    owned_by: str = ""


class ModelList(Reply):
    """The answer of /v1/models."""

    data: list[Model]


class InterventionInfo(Reply):
    """A method in the catalogue; `level` is where it edits, `paper` where it comes from."""

    id: str
    version: str = ""
    title: str = ""
    summary: str = ""
    level: str = ""
    paper: str | None = None
    needs_image: bool = False


class InterventionDetail(InterventionInfo):
    """A method with the JSON Schema (draft 2020-12) of its entry: parameters, defaults, bounds."""

    json_schema: dict[str, Any] = Field(
        default_factory=dict, validation_alias=AliasChoices("schema", "json_schema")
    )


class InterventionList(Reply):
    """The answer of /v1/interventions."""

    data: list[InterventionInfo]


class Validation(Reply):
    """A dry run that passed: the entries with defaults filled in, and their joint fingerprint."""

    fingerprint: str | None = None
    interventions: list[dict[str, Any]] = Field(default_factory=list)
