"""What a request's record learns of its answer, however that ends."""

from __future__ import annotations

from collections.abc import Sequence

from saccade_server.api.choice import Choice
from saccade_server.api.generation import Generation
from saccade_server.api.layers.record import Record, SequenceRecord, summed
from saccade_server.requests.prepared import Prepared


def note_answer(record: Record, prompts: Sequence[Prepared], generation: Generation) -> None:
    """Note what its sequences did, once no more is awaited of them.

    A prompt counts once however many answers it has, as in a response's usage.
    """
    copies = len(generation.choices) // len(prompts)
    begun = [choice for choice in generation.choices if choice.outcome]
    record.n = len(begun)
    grammars = (choice.request.grammar for choice in begun)
    record.grammar = next((grammar.kind.value for grammar in grammars if grammar), "")
    record.images = sum(len(item.prompt.images) for item in prompts)
    record.prompt_tokens = sum(item.length for item in prompts)
    record.completion_tokens = sum(choice.completion_tokens for choice in begun)
    firsts = generation.choices[::copies]
    record.cached_tokens = sum(choice.run.cached_tokens for choice in firsts)
    record.began_work, record.first_token = generation.began, generation.first_token
    record.sequences = tuple(_sequence(choice) for choice in begun)
    record.counters = {
        place: summed(choice.run.counters(place) for choice in begun)
        for place in range(len(record.interventions))
    }


def _sequence(choice: Choice) -> SequenceRecord:
    return SequenceRecord(
        finish_reason=choice.outcome,
        prompt_tokens=len(choice.request.tokens),
        cached_tokens=choice.run.cached_tokens,
        completion_tokens=choice.completion_tokens,
        max_tokens=choice.request.sampling.max_tokens,
        timing=choice.timing,
        constrained=choice.grammar.constrained,
        forced=choice.grammar.forced,
        began=choice.began,
    )
