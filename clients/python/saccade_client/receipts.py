"""Receipts: what the server really did of what a request asked for."""

from typing import Annotated, Any

from pydantic import Field

from saccade_client.wire import NULL_IS_EMPTY, Wire


class Rows(Wire):
    """How many query rows an intervention covered: computed in the prompt, generated, or cached.

    Cached rows came from the prefix cache, where they had been computed under the same plan.
    """

    prompt: int = 0
    generated: int = 0
    cached: int = 0


class Edits(Wire):
    """Attention rows of single heads: how many were considered, and how many really moved.

    A row that the server computes more than once counts once, so `moved` never exceeds `evaluated`.

    `moved` is None where rows are not counted: for edits of scores and outputs, which change every
    row they consider, and where several interventions moved rows of the same head.
    """

    evaluated: int = 0
    moved: int | None = None


class AppliedIntervention(Wire):
    """One line of the receipt: what the server really did for entry `index` of the request.

    `filled_in` are fields that the entry left to its artifact, with what they were; `layers` are
    layer indices, `heads` counts (layer, query head) pairs, `counters` say what a method that
    follows a rule did, `measured` what it found out. `status` is one of
    applied      attention moved, rows went through its edits (also of a clamp that never bound), or
                 its rule contrasted or rejected something
    no_effect    it ran, or found no row to run on, and nothing changed
    cached       nothing changed here, but some of its rows are shared with an earlier request
    neutral      its strength makes it the identity, so there was nothing to run
    unconfirmed  the engine sent no report, or several interventions moved rows of the same head
    """

    index: int = 0
    method: str
    version: str | None = None
    fingerprint: str | None = None
    filled_in: dict[str, Any] = Field(default_factory=dict)
    layers: list[int] = Field(default_factory=list)
    heads: int = 0
    rows: Rows = Rows()
    edits: Edits = Edits()
    counters: dict[str, int] = Field(default_factory=dict)
    measured: dict[str, Any] | None = None
    status: str


Receipt = Annotated[list[AppliedIntervention], NULL_IS_EMPTY]


class StructuredOutput(Wire):
    """What the form that a request asked for did to one answer.

    `constrained_tokens` were drawn under its grammar, `forced_tokens` of them because it left no
    other. `complete`: the answer ended where the grammar lets answers end. `kind` is json_object,
    json_schema, regex, choice, grammar, structural_tag or tools.
    """

    kind: str
    constrained_tokens: int = 0
    forced_tokens: int = 0
    complete: bool = False
