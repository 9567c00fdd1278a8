"""What a server offers: its models, its intervention methods, and the result of a dry run."""

from typing import Any

from pydantic import AliasChoices, Field

from saccade_client.wire import Reply, Wire


class Model(Wire):
    """A model the server answers for.

    `profile` is whose interventions requests get that name this model and nothing else.
    `accepts_tools`: whether its chat template knows tools; `reasoning_markers` are the texts
    around what it thinks.
    """

    id: str
    created: int = 0
    owned_by: str = ""
    profile: str | None = None
    accepts_tools: bool | None = None
    reasoning_markers: list[str] | None = None


class ModelList(Reply):
    """The answer of /v1/models."""

    data: list[Model]


class InterventionInfo(Reply):
    """A method in the catalogue; `level` is where it edits, `paper` where it comes from.

    `reason` says why a method that is not `supported` cannot run on the served model; one that is
    `tested` passed the server's self-test.
    """

    id: str
    version: str = ""
    title: str = ""
    summary: str = ""
    level: str = ""
    paper: str | None = None
    needs_image: bool = False
    needs_artifact: bool = False
    conflicts_with: list[str] = Field(default_factory=list)
    supported: bool = True
    tested: bool = False
    reason: str | None = None


class InterventionDetail(InterventionInfo):
    """A method with the JSON Schema (draft 2020-12) of its entry, and an entry to start from."""

    json_schema: dict[str, Any] = Field(
        default_factory=dict, validation_alias=AliasChoices("schema", "json_schema")
    )
    example: dict[str, Any] = Field(default_factory=dict)


class InterventionList(Reply):
    """The answer of /v1/interventions."""

    data: list[InterventionInfo]


class Profile(Wire):
    """An operator's bundle of interventions; `model` is its alias among the models.

    The server's `default` is that of requests that name nothing; `interventions=[]` opts out.
    """

    id: str
    description: str = ""
    model: str = ""
    interventions: list[dict[str, Any]] = Field(default_factory=list)
    fingerprint: str | None = None
    default: bool = False


class ProfileList(Reply):
    """The answer of /v1/profiles."""

    data: list[Profile]


class ValidatedIntervention(Wire):
    """One entry with its defaults filled in, and where it would act if a prompt was given."""

    index: int = 0
    method: str
    version: str | None = None
    fingerprint: str | None = None
    entry: dict[str, Any] = Field(default_factory=dict)
    layers: list[int] | None = None
    heads: int | None = None
    status: str | None = None


class Validation(Reply):
    """A dry run that passed; `checked` says how far it went, `fingerprint` names the whole list."""

    valid: bool = True
    checked: list[str] = Field(default_factory=list)
    prompt_tokens: int | None = None
    profile: str | None = None
    fingerprint: str | None = None
    interventions: list[ValidatedIntervention] = Field(default_factory=list)
