"""What a request asks of its answers' form: a grammar that they follow, a reader of their text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from saccade_server.api.body.schemas import ChatRequest, Sampled
from saccade_server.api.reading import Reader
from saccade_server.api.reasoning import MayThink
from saccade_server.api.services import Services
from saccade_server.api.structured import asked_of, check_beside
from saccade_server.api.tools.calls import calls_of
from saccade_server.grammars.grammar import Grammar
from saccade_server.requests.prepared import Prepared


@dataclass(frozen=True)
class Shape:
    """The form of the answers to one prompt.

    ``grammar`` is what each of them must be, and ``grammar_at`` the field that asks for it; None:
    they may be anything. ``reader`` makes what tells the parts of one answer's text apart, a new
    one each time; None: there is only text.
    """

    grammar: Grammar | None = None
    reader: Callable[[Prepared], Reader] | None = None
    grammar_at: str = ""


async def shapes_of(
    services: Services, body: Sampled, prompts: Sequence[Prepared]
) -> tuple[Shape, ...]:
    """What a request asks of its answers, prompt by prompt.

    Raises:
        BadRequest: what they must be is no grammar, or cannot be with the request's other fields.
    """
    held: dict[bool, Shape] = {}
    found = []
    for prompt in prompts:
        may_think = MayThink.of(services.prompts.markers, body, prompt.prompt)
        thinks = may_think is not None
        if thinks not in held:
            held[thinks] = await _held(services, body, thinks)
        shape = held[thinks]
        found.append(shape if may_think is None else _behind_reasoning(may_think, shape))
    return tuple(found)


def _behind_reasoning(may_think: MayThink, shape: Shape) -> Shape:
    """The form of answers that may think before they are what was asked."""

    def reader(prepared: Prepared) -> Reader:
        return may_think.reader(None if shape.reader is None else shape.reader(prepared))

    grammar = None if shape.grammar is None else may_think.grammar(shape.grammar, shape.grammar_at)
    return replace(shape, grammar=grammar, reader=reader)


async def _held(services: Services, body: Sampled, thinks: bool) -> Shape:
    """The form of answers that one of many fields says what they must be, or may call."""
    asked, reader = asked_of(body), None
    calls = calls_of(services.prompts, body, asked) if isinstance(body, ChatRequest) else None
    if calls is not None:
        asked, reader = calls.asked, calls.reader
    if calls is not None and asked is None:
        await services.grammars.checked(calls.readable)
    if asked is None:
        return Shape(reader=reader)
    check_beside(services.engine.info, body, asked, thinks)
    return Shape(await services.grammars.checked(asked), reader, asked.field)
