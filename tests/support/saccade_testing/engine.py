"""Requests for tiny models, an engine run to its end, and transformers' own greedy answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from saccade_interventions.artifacts import Artifact
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.registry import Registry
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import (
    Array,
    EngineOutput,
    GenerateRequest,
    ImageInput,
    SamplingParams,
)
from saccade_server.engine.traces.data import TracePiece
from saccade_server.grammars.vocabulary import Vocabulary
from saccade_server.models.family import serve
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.models.views import Cells
from saccade_server.requests.prepared import prepare
from saccade_testing import tiny


@dataclass
class Result:
    """All that an engine said about one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    last: EngineOutput | None = None
    pieces: list[TracePiece] = field(default_factory=list)

    @property
    def trace(self) -> dict[str, np.ndarray[Any, Any]]:
        """What its trace has read, by name: rows in order, each of which must be there once."""
        found: dict[str, np.ndarray[Any, Any]] = {}
        starts: dict[str, int] = {}
        for piece in self.pieces:
            array, known = piece.array.unpack(), found.get(piece.name)
            if known is None:
                found[piece.name], starts[piece.name] = array, piece.start
                continue
            assert piece.start == starts[piece.name] + len(known), "rows are missing, or twice"
            found[piece.name] = np.concatenate([known, array])
        return found


def make_request(
    prompt: Any, name: str = "r", plan: Any = None, max_tokens: int = 12, **sampling: Any
) -> GenerateRequest:
    """A request for a tiny prompt; greedy unless told otherwise."""
    images = tuple(
        ImageInput(
            digest=_digest(image),
            start=image.start,
            length=image.length,
            pixels=Array.pack(image.pixels),
            grid=image.grid,
        )
        for image in prompt.images
    )
    return GenerateRequest(
        request_id=name,
        tokens=tuple(prompt.tokens),
        images=images,
        plan=plan,
        sampling=SamplingParams(max_tokens=max_tokens, **{"temperature": 0.0, **sampling}),
    )


def run(core: EngineCore, requests: Sequence[GenerateRequest]) -> dict[str, Result]:
    """Submit all requests at once and step until the engine is idle."""
    results = {request.request_id: Result() for request in requests}

    def note(output: EngineOutput | None) -> None:
        if output is not None:
            result = results[output.request_id]
            result.tokens += output.tokens
            result.logprobs += output.logprobs
            result.pieces += output.trace
            result.last = output

    for request in requests:
        note(core.submit(request))
    for _ in range(10_000):
        if not core.busy:
            return results
        for output in core.step():
            note(output)
    raise AssertionError("the engine did not finish")


def generate(model: Any, prompt: Any, max_tokens: int = 12) -> list[int]:
    """Greedy tokens of transformers' generate for one prompt, alone."""
    tokens = torch.tensor([prompt.tokens])
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    inputs |= prompt.arguments(tokens, model.dtype)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens, use_cache=True)
    tokens_after: list[int] = output[0, len(prompt.tokens) :].tolist()
    return tokens_after


Artifacts = Callable[[str], Artifact | None]
"""What is stored, by digest."""
SINK_DIMS = (3, 11)
"""Of tiny models."""

MakeCore = Callable[..., EngineCore]
"""``make(family, **config)``, as :func:`core_with`."""


def core_with(
    family: str = "llama", vocabulary: Vocabulary | None = None, **config: Any
) -> EngineCore:
    """An engine over a fresh tiny model; ``config`` are fields of EngineConfig."""
    settings = {"max_num_seqs": 16, "cache_tokens": 8192, **config}
    made = EngineConfig(model=family, **settings)
    return EngineCore(serve(tiny.build(family)), made, SINK_DIMS, vocabulary=vocabulary)


IMAGE_SIZE = (90, 60)
"""That images of tiny prompts have for regions, which tokens divide into columns."""

REGISTRY = Registry.discover()
TINY = ModelFacts(layers=4, heads=4, kv_heads=2, head_dim=16, hidden_size=64)


def plan_for(
    core: EngineCore,
    prompt: tiny.TinyPrompt,
    entries: Sequence[Any],
    artifacts: Artifacts | None = None,
    **facts: Any,
) -> Plan | None:
    """The plan of interventions as clients write them, or of methods; None where there are none.

    ``facts`` are fields of ModelFacts beside what the engine says of its model.
    """
    info = core.info
    sizes = (info.layers, info.heads, info.kv_heads, info.head_dim, info.hidden_size)
    spans = tuple((image.start, image.start + image.length) for image in prompt.images)
    context = Context(
        ModelFacts(*sizes, **facts), Prompt(length=len(prompt.tokens), images=spans), artifacts
    )
    methods = [
        method
        for entry in entries
        for method in (REGISTRY.parse([entry]) if isinstance(entry, dict) else [entry])
    ]
    return compile_plan(methods, context)


def ask(
    prompt: Any,
    methods: Sequence[Any],
    name: str = "r",
    max_tokens: int = 8,
    *,
    facts: ModelFacts = TINY,
    artifacts: Artifacts | None = None,
    **sampling: Any,
) -> GenerateRequest:
    """A request with interventions, and the branches the API makes for them; no end token ends.

    ``facts`` and ``artifacts`` are what the methods compile with.
    """
    images = tuple(
        PreparedImage(
            *(_digest(view), view.start, view.length, view.pixels, view.grid),
            copies=2 if view.pixels.ndim == 2 else 1,
            before=view.before,
            behind=view.behind,
            cells=Cells(1, view.length),
            image=view.image,
            size=IMAGE_SIZE,
        )
        for view in prompt.images
    )
    rendered = RenderedPrompt(tuple(prompt.tokens), "", (), images)
    settings = {"temperature": 0.0, "ignore_eos": True, **sampling}
    prepared = prepare(rendered, methods, facts, artifacts)
    return prepared.request(name, SamplingParams(max_tokens=max_tokens, **settings))


def _digest(view: Any) -> str:
    return f"{hash(view.pixels.tobytes()):x}"
