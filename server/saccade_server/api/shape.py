"""What a request asks of its answers' form: a grammar that they follow, a reader of their text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saccade_server.api.body.schemas import Sampled
from saccade_server.api.reading import Reader
from saccade_server.api.reasoning import MayThink
from saccade_server.api.services import Services
from saccade_server.grammars.grammar import Grammar
from saccade_server.requests.prepared import Prepared


@dataclass(frozen=True)
class Shape:
    """The form of the answers to one prompt.

    ``grammar`` is what each of them must be; None: anything. ``reader`` makes what tells the parts
    of one answer's text apart, a new one each time; None: there is only text.
    """

    grammar: Grammar | None = None
    reader: Callable[[Prepared], Reader] | None = None


PLAIN = Shape()


async def shape_of(services: Services, body: Sampled, prompt: Prepared) -> Shape:
    """What a request asks of the answers to one of its prompts."""
    shape = PLAIN
    may_think = MayThink.of(services.prompts.markers, body, prompt.prompt)
    return shape if may_think is None else _behind_reasoning(may_think, shape)


async def shapes_of(
    services: Services, body: Sampled, prompts: Sequence[Prepared]
) -> tuple[Shape, ...]:
    """What a request asks of its answers, prompt by prompt."""
    return tuple([await shape_of(services, body, prompt) for prompt in prompts])


def _behind_reasoning(may_think: MayThink, shape: Shape) -> Shape:
    """The form of answers that may think before they are what was asked."""

    def reader(prepared: Prepared) -> Reader:
        return may_think.reader(None if shape.reader is None else shape.reader(prepared))

    grammar = None if shape.grammar is None else may_think.grammar(shape.grammar)
    return Shape(grammar, reader)
