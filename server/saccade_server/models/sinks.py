"""Which dimensions of a model's residual stream carry the massive activations of sink tokens.

They belong to the language model and not to a request, so they are found once at load: looked up
where they are published, measured otherwise. Measuring follows VAR (arXiv 2503.03321): the first
token of any prompt is a sink, so in the middle layers its massive dimensions stand out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from saccade_kernels.sinks import RMS_EPSILON, default_threshold
from saccade_server.models.base import ServedModel
from saccade_server.models.scratch import ScratchCache

MOST_DIMS = 3

# Without a massive activation the largest of n normal values stays below about 6 times the median
# magnitude. On a narrow stream the threshold alone is so low that chance reaches it.
FEWEST_MEDIANS = 7.0


@dataclass(frozen=True)
class KnownSinks:
    """Published sink dimensions of the models that have this shape."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: range
    dims: tuple[int, ...]

    def matches(self, model: ServedModel) -> bool:
        """True when ``model`` has this shape."""
        return (
            model.family in ("llama", "llava")
            and model.vocab_size in self.vocabulary
            and (model.hidden_size, model.layers) == (self.hidden_size, self.layers)
            and (model.heads, model.kv_heads) == (self.heads, self.kv_heads)
        )


# LLaVA adds an image token and rounds the vocabulary up to a multiple of 64.
KNOWN = (
    KnownSinks(4096, 32, 32, 32, range(32000, 32065), (1415, 2533)),  # Llama-2-7B, Vicuna-7B
    KnownSinks(5120, 40, 40, 40, range(32000, 32065), (2100, 4743)),  # Llama-2-13B, Vicuna-13B
)


def find_sink_dims(model: ServedModel, prompts: int = 20, length: int = 24) -> tuple[int, ...]:
    """The model's sink dimensions, strongest first; empty when it has none.

    Unless they are known, ``prompts`` short random prompts run through the model and the
    dimensions are taken in which |x| / RMS(x) of the first token exceeds the default threshold
    (median over prompts, best of the middle layers).
    """
    for known in KNOWN:
        if known.matches(model):
            return known.dims
    middle = range(model.layers // 4, 3 * model.layers // 4 + 1)
    residuals = first_residuals(model, middle, prompts, length)
    return strongest_dims(residuals, default_threshold(model.hidden_size))


def strongest_dims(residuals: torch.Tensor, threshold: float) -> tuple[int, ...]:
    """At most :data:`MOST_DIMS` massive dimensions of sink tokens' residuals.

    Args:
        residuals: of each layer and prompt, [layers, prompts, hidden_size], float32.
        threshold: least |x| / RMS(x).
    """
    magnitude = residuals.abs()
    rms = residuals.square().mean(-1, keepdim=True).add(RMS_EPSILON).sqrt()
    typical = magnitude.median(-1, keepdim=True).values
    is_massive = magnitude >= FEWEST_MEDIANS * typical
    score = torch.where(is_massive, magnitude / rms, 0).median(1).values.amax(0)  # [hidden_size]
    best = score.topk(min(MOST_DIMS, score.numel()))
    found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return tuple(index for value, index in found if value > threshold)


def first_residuals(
    model: ServedModel, layers: Iterable[int], prompts: int, length: int
) -> torch.Tensor:
    """Residuals of the first token of random prompts, entering each of ``layers``.

    Returns:
        float32 on the CPU, [layers, prompts, hidden_size].
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocab_size, (prompts, length), generator=generator)
    if model.bos_token_id is not None:
        tokens[:, 0] = model.bos_token_id
    cache = ScratchCache(model, prompts, length)
    probe = _FirstTokens(frozenset(layers), torch.arange(prompts) * length)
    step = cache.step([(sequence, length) for sequence in range(prompts)], sinks=(probe,))
    positions = model.positions(range(length)).table.repeat(1, prompts)
    with torch.no_grad():
        embeddings = model.embed(tokens.flatten().to(model.device))
        model.forward(embeddings, positions.to(model.device), step)
    return torch.stack([probe.seen[layer] for layer in sorted(probe.layers)])


@dataclass(frozen=True)
class _FirstTokens:
    """A probe that keeps the residuals of some rows."""

    layers: frozenset[int]
    rows: torch.Tensor  # int64 [N]
    seen: dict[int, torch.Tensor] = field(default_factory=dict)  # by layer, [N, hidden_size]

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        self.seen[layer] = hidden[self.rows.to(hidden.device)].float().cpu()
