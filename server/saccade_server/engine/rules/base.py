"""The seam between the engine and rules: what a rule asks for, and the handler that does it.

A rule is data in a plan (:mod:`saccade_interventions.rules`). The core sees to what the rule needs
without knowing its kind. What a kind of rule does while tokens are computed is its *handler*, one
file a kind in this folder. A step's chunks are gone through once (:func:`ask`), and a handler is
called with the chunks whose plans have its kind of rule; in a step without rules no handler is.

A request's trace goes the same way, behind its plan's rules: it is a kind of its own, with one
handler (:mod:`saccade_server.engine.traces`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from msgspec import Struct

from saccade_interventions.plan import Plan
from saccade_server.engine.batch import PromptPositions, Step
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.combined import Combined
from saccade_server.engine.inputs import DecodeInputs
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.sampler import Sample
from saccade_server.engine.seats import Roster
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Stage
from saccade_server.engine.tables import DeviceTables
from saccade_server.engine.transfer import Uploader
from saccade_server.engine.wants import Search, Wants
from saccade_server.models.attention import AttentionMeasure
from saccade_server.models.base import ServedModel
from saccade_server.models.probes import ResidualProbe
from saccade_server.models.tape import Tape

R = TypeVar("R", bound=Struct)
"""A kind of rule, or the trace."""

Kind = type[Struct]


class Asked(NamedTuple, Generic[R]):
    """One chunk of a step whose plan has a rule, or whose request has a trace."""

    rule: R
    chunk: Chunk
    at: int  # place of the chunk in the step
    row: int  # among the rows that tokens are drawn from; -1: none is drawn behind it


Asking = Mapping[Kind, Batch[Asked[Any]]]
"""Kind of rule -> the chunks of a step that ask for it, in their order."""


def ask(chunks: Batch[Chunk]) -> Asking:
    """Which rules the chunks of a step ask for; empty if none does."""
    found: dict[Kind, list[Asked[Any]]] = {}
    drawn = 0
    for at, chunk in enumerate(chunks):
        draws = chunk.draws
        for rule in asks_of(chunk.sequence.request):
            asked: Asked[Any] = Asked(rule, chunk, at, drawn if draws else -1)
            found.setdefault(type(rule), []).append(asked)
        drawn += draws
    return found


def asks_of(request: GenerateRequest) -> tuple[Struct, ...]:
    """The rules of a request's plan, and its trace."""
    plan, trace = request.plan, request.trace
    rules = () if plan is None else plan.rules
    return rules if trace is None else (*rules, trace)


@dataclass(frozen=True)
class EngineParts:
    """What handlers work on: the model, and what the engine keeps on its device."""

    model: ServedModel
    keys: Batch[torch.Tensor]  # by layer, [pages, PAGE, kv_heads, head_dim]
    values: Batch[torch.Tensor]  # likewise
    tables: DeviceTables
    upload: Uploader
    positions: Callable[[Sequence], PromptPositions]
    sink_dims: tuple[int, ...]  # of the residual, in which this model's attention sinks show
    pads: bool  # steps that only decode are padded, and run without probes

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @cached_property
    def sink_scores(self) -> torch.Tensor:
        """How much of a sink each cached token is: float32 [layers, slots], by cache slot, so that
        a shared prefix brings its scores along. Nothing is spent before somebody asks.
        """
        shape = (self.model.layers, self.slots)
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    @property
    def slots(self) -> int:
        """Tokens that the cache has room for, padding's page included."""
        return self.keys[0].shape[0] * self.keys[0].shape[1]


class Look(Protocol):
    """Probes and measures that one kind of rule puts into the layers of an ordinary step."""

    @property
    def probes(self) -> tuple[ResidualProbe, ...]:
        """What looks at sites."""
        ...

    @property
    def measures(self) -> tuple[AttentionMeasure, ...]:
        """What looks at attention."""
        ...

    @property
    def tape(self) -> Tape | None:
        """What keeps activations to go back through the layers."""
        ...


@dataclass(frozen=True)
class Looks:
    """A :class:`Look` that is nothing beside its probes and measures."""

    probes: tuple[ResidualProbe, ...] = ()
    measures: tuple[AttentionMeasure, ...] = ()
    tape: Tape | None = None


class Pending(Protocol):
    """Results of a step for one handler, read when the device has computed them."""

    def note(self) -> None:
        """Wait for the device and take the results; called once, before the other two."""
        ...

    def choose(self, chunk: Chunk, sample: Sample) -> Sample:
        """The token that follows a chunk of the step, in place of the one drawn."""
        ...

    def again(self, chunk: Chunk) -> Plan | None:
        """The plan under which the last row of a chunk is to run again; None: it is not."""
        ...


class News:
    """A :class:`Pending` that has nothing to say."""

    def note(self) -> None:
        """Nothing."""

    def choose(self, chunk: Chunk, sample: Sample) -> Sample:
        """The token that was drawn."""
        return sample

    def again(self, chunk: Chunk) -> Plan | None:
        """No plan: the row has run."""
        return None


class RuleHandler(Generic[R]):
    """Carries out one kind of rule. Every hook has a default that does nothing.

    Hooks of a step, in order of time:

        ordinary step     before, look, forward pass, combine, draws, launched
        padded step       its stages, around the captured step, and staged; or, if a row draws from
                          changed logits, combine and launched behind it
        step on the host  note, choose and again of what launched gave, accepted for each token
    """

    kind: ClassVar[Kind]
    search: Search = Search.NOTHING
    """What :meth:`look_padded` looks for."""

    def __init__(self, parts: EngineParts) -> None:
        self.parts = parts

    def why_refused(self, request: GenerateRequest, rule: R) -> str | None:
        """Why this can never be carried out for a request; the API has checked the same."""
        return None

    def wants(self, sequence: Sequence, rule: R, decodes: bool) -> Wants:
        """What a single row of a sequence needs: a generated one, or the last of its prompt.

        ``combine`` and ``launched`` are called for its step only if it wants CHOICE, or
        COMBINATION where stages do the same in padded steps.
        """
        return Wants.NOTHING

    def stages(self, outputs: StepOutputs) -> Batch[Stage]:
        """What a padded step has for this kind before or behind it. Asked once, at the start.

        A handler with stages does nothing else in a padded step that its stages do.
        """
        return ()

    def draws_unmasked(self, roster: Roster) -> bool:
        """True if it must know distributions as they are before grammars' masks, which no stage
        leaves behind a padded step of this roster, whose rows grammars hold.
        """
        return False

    def admit(self, sequence: Sequence, rule: R) -> None:
        """A sequence has come that will ask."""

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence, which may never have asked."""

    def before(self, asked: Batch[Asked[R]]) -> None:
        """Queue what the tables must say when a step runs that is not padded."""

    def look(self, step: Step, asked: Batch[Asked[R]]) -> Look | None:
        """What looks inside the layers of a step."""
        return None

    def kept(self, outputs: StepOutputs, asked: Batch[Asked[R]]) -> Any:
        """In the place of :meth:`look`, of a padded step behind which no stage runs."""
        return None

    def look_padded(self, inputs: DecodeInputs) -> Looks:
        """What looks inside the layers of a step of single rows with these inputs.

        It is captured, so all that it depends on lies in fixed places on the device.
        """
        return Looks()

    def combine(self, rows: Combined, views: Views, asked: Batch[Asked[R]], look: Any) -> None:
        """Change, in place, rows that tokens are drawn from.

        Args:
            rows: one for each chunk that draws.
            look: what :meth:`look` gave, or :meth:`kept` of a padded step.
        """

    def launched(self, rows: Combined, asked: Batch[Asked[R]], look: Any) -> Pending | None:
        """Queue what the host is to know of the step.

        Args:
            rows: one for each chunk that draws, as tokens are drawn from them, and which were.
            look: as in :meth:`combine`.
        """
        return None

    def staged(self, asked: Batch[Asked[R]]) -> Pending | None:
        """As :meth:`launched`, of a padded step whose stages have drawn."""
        return None

    def accepted(self, sequence: Sequence, rule: R) -> None:
        """A token was added to the sequence."""

    def rehearsal(self) -> R | None:
        """A rule for the engine's warm-up, if what it has computed should be compiled early."""
        return None


@dataclass(frozen=True)
class Views:
    """One row of logits for each chunk that samples, branches too; not to be changed."""

    rows: Combined
    places: Mapping[Sequence, int]
