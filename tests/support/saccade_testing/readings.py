"""What traces are compared with: transformers' modules over a whole sequence, in float64."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from msgspec.structs import replace

from saccade_kernels.batch import PAGE
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.traces.data import AnyReading, DivergenceReading, Trace
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.requests.branches import traced_branch
from saccade_testing import tiny
from saccade_testing.engine import core_with
from saccade_testing.oracle import attend
from saccade_testing.steered import output_of
from saccade_testing.tiny import TinyPrompt

TOKENS = 5
SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "chunks": {"max_batched_tokens": 23},
    "padded": {"padded_decode": True},
    "as on a GPU": {"padded_decode": True, "overlap": True},
    "preempted": {"max_batched_tokens": 48},
}
"""Configurations of an engine in which rows run in different kinds of steps."""


def prompts_of(family: str, count: int = 2) -> list[TinyPrompt]:
    """Some that fill their last pages but for two tokens."""
    short = len(tiny.prompt(family, text=0).tokens)
    return [tiny.prompt(family, seed=seed, text=-(short + 2) % PAGE) for seed in range(count)]


def core_for(setting: str, prompts: list[TinyPrompt], family: str) -> EngineCore:
    """Its cache holds the prompts, and where it preempts no more pages than those."""
    pages = sum(-(-len(prompt.tokens) // PAGE) for prompt in prompts)
    room = {"cache_tokens": pages * PAGE} if setting == "preempted" else {}
    return core_with(family, **{**SETTINGS[setting], **room})


def with_trace(request: GenerateRequest, *readings: AnyReading) -> GenerateRequest:
    """The request with a trace of these."""
    return replace(request, trace=Trace(readings))


def all_rows(prompt: TinyPrompt, tokens: int = TOKENS) -> tuple[int, int]:
    """Of the prompt and of an answer."""
    return 0, len(prompt.tokens) + tokens - 1


def answer_rows(prompt: TinyPrompt, tokens: int = TOKENS) -> tuple[int, int]:
    """Those that an answer is drawn from."""
    return len(prompt.tokens) - 1, len(prompt.tokens) + tokens - 1


def rendered(prompt: TinyPrompt) -> RenderedPrompt:
    """The prompt as requests know it."""
    images = tuple(
        PreparedImage(
            *(f"{hash(view.pixels.tobytes()):x}", view.start, view.length, view.pixels, view.grid),
            before=view.before,
            behind=view.behind,
            image=view.image,
        )
        for view in prompt.images
    )
    return RenderedPrompt(tuple(prompt.tokens), "", (), images)


def compared(
    request: GenerateRequest, prompt: TinyPrompt, readings: Sequence[DivergenceReading]
) -> GenerateRequest:
    """With the branch that these readings compare with, if there are any."""
    if not readings:
        return request
    branch = traced_branch(request.plan, rendered(prompt), readings)
    return replace(request, branches=(*request.branches, branch))


@dataclass
class Modules:
    """What a transformers model's modules gave and got, hooks registered before it included."""

    model: Any
    residuals: dict[int, torch.Tensor] = field(default_factory=dict)
    """Entering each layer, and behind the last: [rows, hidden_size]."""
    outputs: dict[str, dict[int, torch.Tensor]] = field(default_factory=lambda: defaultdict(dict))
    """What attention and MLP add, by site and layer."""

    def __post_init__(self) -> None:
        decoder = self.model.get_decoder()
        for index, layer in enumerate((*decoder.layers, decoder.norm)):
            layer.register_forward_pre_hook(self._before(index), with_kwargs=True)
        for index, layer in enumerate(decoder.layers):
            for site in ("attention_output", "mlp_output"):
                output_of(layer, site).register_forward_hook(self._behind(site, index))

    @torch.no_grad()
    def run(self, prompt: TinyPrompt, tokens: list[int]) -> torch.Tensor:
        """Logits of all rows that an answer's tokens have, [rows, vocabulary]."""
        ids = torch.tensor([[*prompt.tokens, *tokens[:-1]]])
        inputs = {"input_ids": ids, **prompt.arguments(ids, self.model.dtype)}
        found: torch.Tensor = self.model(**inputs, use_cache=False).logits[0]
        return found

    def at(self, site: str, layer: int) -> torch.Tensor:
        """What a site holds."""
        return self.residuals[layer] if site == "residual" else self.outputs[site][layer]

    def _before(self, index: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            self.residuals[index] = (args[0] if args else kwargs["hidden_states"])[0]

        return hook

    def _behind(self, site: str, index: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            self.outputs[site][index] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook


Weights = Callable[[int, torch.Tensor], torch.Tensor]
"""``weights(layer, scores) -> A'``, both [heads, rows, keys]; scores of hidden keys are -inf."""


def plain(layer: int, scores: torch.Tensor) -> torch.Tensor:
    """A softmax."""
    return scores.softmax(-1)


def saliency(
    model: Any, prompt: TinyPrompt, tokens: list[int], weights: Weights = plain
) -> torch.Tensor:
    """|A' dL/dA'| of the rows that tokens are drawn from, L = -log p of the row's own token.

    By one pass over the sequence and a gradient for each row: [rows, layers, heads, keys].
    """
    used: dict[int, torch.Tensor] = {}

    def weigh(layer: int, scores: torch.Tensor) -> torch.Tensor:
        used[layer] = weights(layer, scores)
        return used[layer]

    attend(model, weigh)
    ids = torch.tensor([[*prompt.tokens, *tokens[:-1]]])
    inputs = {"input_ids": ids, **prompt.arguments(ids, model.dtype)}
    logs = model(**inputs, use_cache=False).logits[0].log_softmax(-1)
    every, first, found = [used[layer] for layer in sorted(used)], len(prompt.tokens) - 1, []
    for row, token in enumerate(tokens, first):
        grads = torch.autograd.grad(-logs[row, token], every, retain_graph=True)
        pairs = zip(every, grads, strict=True)
        found.append(torch.stack([(a * g).abs()[:, row].detach() for a, g in pairs]))
    return torch.stack(found)


@torch.no_grad()
def head_outputs(
    model: Any, prompt: TinyPrompt, tokens: list[int], gains: dict[tuple[int, int], float]
) -> torch.Tensor:
    """What output projections read, of the rows that tokens are drawn from, each head times its
    gain in those rows, by (layer, head): [rows, layers, heads, head_dim].
    """
    first, found = len(prompt.tokens) - 1, {}

    def behind(layer: int, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        for (at, head), gain in gains.items():
            if at == layer:
                output[head, first:] *= gain
        found[layer] = output[:, first:].transpose(0, 1)
        return output

    attend(model, plain, behind)
    ids = torch.tensor([[*prompt.tokens, *tokens[:-1]]])
    inputs = {"input_ids": ids, **prompt.arguments(ids, model.dtype)}
    model(**inputs, use_cache=False)
    return torch.stack([found[layer] for layer in sorted(found)], 1)
