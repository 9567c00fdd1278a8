"""Traces of a made-up model and prompt, and what a scripted engine reads for them."""

from types import SimpleNamespace
from typing import Any

import pytest

from saccade_interventions.context import Prompt
from saccade_interventions.image_views import ImageView
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.registry import Registry
from saccade_server.engine.traces.data import TracePiece
from saccade_server.requests.errors import RequestError
from saccade_server.requests.traces.options import TraceOptions
from saccade_server.requests.traces.resolve import TracePlan, resolve
from saccade_server.requests.traces.scope import Scope
from saccade_testing.api import traced

MODEL = ModelFacts(
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=4,
    hidden_size=16,
    sink_dims=(1,),
    fingerprint="sha256:" + "0" * 64,
)
BLIND = ModelFacts(layers=3, heads=4, kv_heads=2, head_dim=4, hidden_size=16, accepts_images=False)
VIEWS = (
    ImageView(image=0, span=(2, 10), rows=2, columns=3, size=(60, 40), gap=1),
    ImageView(image=0, span=(12, 15), rows=2, columns=2, size=(60, 40), lead=-1),
    ImageView(image=1, span=(16, 19), rows=1, columns=2, size=(9, 9), lead=1),
)
PROMPT = Prompt(
    length=25,
    images=tuple(view.span for view in VIEWS),
    image_numbers=(0, 0, 1),
    views=VIEWS,
)
REGISTRY = Registry.discover()
TEXT = Prompt(length=25)
TOKENS = 6


def scope(prompt: Prompt = PROMPT, model: ModelFacts = MODEL, **more: Any) -> Scope:
    return Scope(model, prompt, more.pop("max_tokens", TOKENS), **more)


def plan(where: Scope | None = None, **kinds: Any) -> TracePlan:
    return resolve(TraceOptions.model_validate(kinds), where or scope())


def pieces(found: TracePlan, generated: int) -> list[TracePiece]:
    """What an engine would read of an answer of so many tokens, row by row."""
    request: Any = SimpleNamespace(trace=found.trace)
    length = found.scope.length
    end = max(length, length - 1 + generated)
    return [
        piece for at in range(end) for piece in traced.pieces(request, at, at + 1, at == end - 1)
    ]


def arrays(found: TracePlan, generated: int = TOKENS) -> dict[str, Any]:
    joined = found.collect()
    joined.add(pieces(found, generated))
    return joined.arrays(generated)


def filled(generated: int = TOKENS, where: Scope | None = None, **kinds: Any) -> dict[str, Any]:
    return arrays(plan(where, **kinds), generated)


def refused(where: Scope | None = None, **kinds: Any) -> tuple[str, str]:
    with pytest.raises(RequestError) as failed:
        plan(where, **kinds)
    return failed.value.code, failed.value.param
