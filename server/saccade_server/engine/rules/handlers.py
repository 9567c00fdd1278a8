"""All handlers of an engine: a step's rules are handed to those whose kinds are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Batch
from typing import Any

import numpy as np
import torch
from msgspec import Struct

from saccade_interventions.rules import AnyRule
from saccade_server.engine.batch import Step
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.combined import Combined
from saccade_server.engine.inputs import DecodeInputs
from saccade_server.engine.masks import Masks
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.rules.base import (
    Asked,
    Asking,
    EngineParts,
    Kind,
    Look,
    Pending,
    RuleHandler,
    Views,
    asks_of,
)
from saccade_server.engine.seats import Roster
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Stage
from saccade_server.engine.wants import Search, Wants
from saccade_server.models.attention import AttentionMeasure
from saccade_server.models.probes import ResidualProbe

Looking = dict[Kind, Look]
"""What each kind has in the layers of a step."""

Looked = tuple[tuple[ResidualProbe, ...], tuple[AttentionMeasure, ...]]
"""What all kinds have in the layers of a step."""


class Handlers:
    """One handler a kind, in the order in which they act."""

    def __init__(self, kinds: Batch[type[RuleHandler[Any]]], parts: EngineParts) -> None:
        self._upload = parts.upload
        self._handlers = {kind.kind: kind(parts) for kind in kinds}

    def __getitem__(self, kind: Kind) -> RuleHandler[Any]:
        return self._handlers[kind]

    def __iter__(self) -> Iterator[RuleHandler[Any]]:
        return iter(self._handlers.values())

    def why_refused(self, request: GenerateRequest) -> str | None:
        """Why what a request asks for can never be carried out."""
        asked = ((self._handlers[type(rule)], rule) for rule in asks_of(request))
        reasons = (handler.why_refused(request, rule) for handler, rule in asked)
        return next((reason for reason in reasons if reason is not None), None)

    def wants(self, sequence: Sequence, decodes: bool = True) -> Wants:
        """What a generated row of a sequence needs, or the last of its prompt."""
        wants = Wants.NOTHING
        for handler, rule in self._of(sequence):
            wants |= Wants.RULES | handler.wants(sequence, rule, decodes)
        return wants

    def stages(self, outputs: StepOutputs) -> list[Stage]:
        """What padded steps have for rules before or behind them."""
        return [stage for handler in self for stage in handler.stages(outputs)]

    def draw_unmasked(self, roster: Roster) -> bool:
        """True if a padded step of this roster, whose rows grammars hold, draws without stages."""
        if self not in roster.noted:
            roster.noted[self] = any(handler.draws_unmasked(roster) for handler in self)
        found: bool = roster.noted[self]
        return found

    def admit(self, sequence: Sequence) -> None:
        """A sequence has come."""
        for handler, rule in self._of(sequence):
            handler.admit(sequence, rule)

    def accepted(self, sequence: Sequence) -> None:
        """A token was added to a sequence."""
        for handler, rule in self._of(sequence):
            handler.accepted(sequence, rule)

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        for handler in self:
            handler.forget(sequence)

    def rehearsal(self) -> tuple[AnyRule, ...]:
        """Rules whose work is to be done once before there are requests."""
        found = (handler.rehearsal() for handler in self)
        return tuple(rule for rule in found if rule is not None)

    def before(self, asking: Asking) -> None:
        """Queue what the tables must say when the step runs."""
        for handler, asked in self._asked(asking):
            handler.before(asked)

    def look(self, step: Step, asking: Asking) -> Looking:
        """What looks inside the layers of a step that is not padded."""
        found = ((h.kind, h.look(step, asked)) for h, asked in self._asked(asking))
        return {kind: look for kind, look in found if look is not None}

    def kept(self, outputs: StepOutputs, asking: Asking) -> Looking:
        """What a padded step leaves for those whose stages do not run behind it."""
        found = ((h.kind, h.kept(outputs, asked)) for h, asked in self._asked(asking))
        return {kind: look for kind, look in found if look is not None}

    @property
    def search(self) -> Search:
        """All that padded steps may look for."""
        found = Search.NOTHING
        for handler in self:
            found |= handler.search
        return found

    def look_padded(self, search: Search, inputs: DecodeInputs) -> Looked:
        """What looks for this inside the layers of a step of single rows with these inputs."""
        looks = [h.look_padded(inputs) for h in self if h.search & search]
        probes = tuple(probe for look in looks for probe in look.probes)
        return probes, tuple(measure for look in looks for measure in look.measures)

    def combine(
        self,
        logits: torch.Tensor,
        sampling: Batch[Chunk],
        asking: Asking,
        looking: Looking,
        masks: Masks,
    ) -> Combined:
        """A row for each of these chunks that draws.

        Args:
            logits: a row for each chunk, [chunks, vocabulary], float32 or wider; not modified.
        """
        views = Combined.of(logits, sampling, self._upload, masks)
        drawing = [row for row, chunk in enumerate(sampling) if chunk.draws]
        if not asking and len(drawing) == len(sampling):
            return views
        rows = views.select(self._upload(np.array(drawing, np.int64))[0])
        places = {chunk.sequence: row for row, chunk in enumerate(sampling)}
        for handler, asked in self._asked(asking):
            drawn = [a for a in asked if a.row >= 0]
            if drawn:
                handler.combine(rows, Views(views, places), drawn, looking.get(handler.kind))
        return rows

    def launched(self, rows: Combined, asking: Asking, looking: Looking) -> tuple[Pending, ...]:
        """Queue what the host is to know of the step; ``rows`` are those of :meth:`combine`."""
        found = (
            handler.launched(rows, asked, looking.get(handler.kind))
            for handler, asked in self._asked(asking)
        )
        return tuple(pending for pending in found if pending is not None)

    def staged(self, asking: Asking) -> tuple[Pending, ...]:
        """As :meth:`launched`, of a padded step whose stages have drawn."""
        found = (handler.staged(asked) for handler, asked in self._asked(asking))
        return tuple(pending for pending in found if pending is not None)

    def _of(self, sequence: Sequence) -> Iterator[tuple[RuleHandler[Any], Struct]]:
        for rule in asks_of(sequence.request):
            yield self._handlers[type(rule)], rule

    def _asked(self, asking: Asking) -> Iterator[tuple[RuleHandler[Any], Batch[Asked[Any]]]]:
        if asking:
            for kind, handler in self._handlers.items():
                if kind in asking:
                    yield handler, asking[kind]
