"""What a request is to all queues on its way: whose, how urgent, and until when."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from msgspec.structs import replace

from saccade_server.api.access.keys import Key, caller
from saccade_server.api.access.rates import Rates
from saccade_server.api.backlog import Ticket
from saccade_server.api.deadline import Deadline, current_deadline
from saccade_server.api.errors import BadRequest
from saccade_server.api.origin import origin
from saccade_server.engine.request import GenerateRequest

current_ticket: ContextVar[Ticket] = ContextVar("saccade_ticket")
"""That of the request being served, since it has a place."""


@dataclass(frozen=True)
class Standing:
    """Of one request for answers."""

    key: Key
    priority: int
    deadline: Deadline
    ticket: Ticket
    rates: Rates

    def of(self, request: GenerateRequest) -> GenerateRequest:
        """The same for the engine, with what its log calls the request being served."""
        return replace(
            request,
            owner=self.key.name,
            priority=self.priority,
            deadline=self.deadline.at,
            origin=origin(),
        )

    def take_prompts(self, tokens: int) -> None:
        """Count the tokens of its prompts.

        Raises:
            RateLimited: its key has not so many left.
        """
        self.rates.take(self.key, tokens=tokens)

    def end(self, answered: int) -> None:
        """Count the tokens that it was answered."""
        self.rates.add(self.key, tokens=answered)


def as_of(other: GenerateRequest, request: GenerateRequest) -> GenerateRequest:
    """A request of the engine that stands as another one does, for whose sake it is made."""
    return replace(
        request,
        owner=other.owner,
        priority=other.priority,
        deadline=other.deadline,
        origin=other.origin,
    )


def standing(
    rates: Rates, priority: int | None, sequences: int, max_queue_time: float | None
) -> Standing:
    """That of the request being served, which asks for so many sequences.

    Raises:
        BadRequest: its key may not be so urgent.
        Unavailable: it would wait for longer than ``max_queue_time``, or than it has time.
    """
    key = caller.get()
    ceiling = key.priority_ceiling
    chosen = key.priority if priority is None else priority
    if ceiling is not None and chosen < ceiling:
        message = f"This key may ask for a priority of {ceiling} or more; the lower goes first."
        raise BadRequest(message, code="priority_not_allowed", param="priority")
    deadline, ticket = current_deadline.get(), current_ticket.get()
    ticket.revise(chosen, sequences, patience(deadline, max_queue_time))
    return Standing(key, chosen, deadline, ticket, rates)


def patience(deadline: Deadline, max_queue_time: float | None) -> float:
    """Seconds that a request may wait before it begins."""
    return deadline.left if max_queue_time is None else min(deadline.left, max_queue_time)
