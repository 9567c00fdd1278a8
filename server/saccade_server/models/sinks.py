"""Which dimensions of a model's residual stream carry the massive activations of sink tokens.

They belong to the language model and not to a request, so they are found once at load. They are
measured as in VAR (arXiv 2503.03321): the first token of any prompt is a sink, so in the middle
layers its massive dimensions stand out. It must be a token that prompts really begin with, what
chats begin with (opening.py) or a BOS: many models make nothing of another one in its place.
What is published for a model of this shape is a prior: a
shape does not identify the weights, and most lists come from third parties. If every dimension that
is measured is a published one, or none is measured, the published ones count, weaker ones among
them that random prompts may not show; otherwise what was measured counts, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from saccade_kernels.residual import SiteKind
from saccade_kernels.sinks import RMS_EPSILON
from saccade_kernels.thresholds import default_threshold
from saccade_server.models.base import ServedModel
from saccade_server.models.scratch import ScratchCache

logger = logging.getLogger(__name__)

MOST_DIMS = 3

# Without a massive activation the largest of n normal values stays below about 6 times the median
# magnitude. On a narrow stream the threshold alone is so low that chance reaches it.
FEWEST_MEDIANS = 7.0


@dataclass(frozen=True)
class KnownSinks:
    """Published sink dimensions of the models that have this shape."""

    name: str
    families: tuple[str, ...]
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: range
    dims: tuple[int, ...]

    def matches(self, model: ServedModel) -> bool:
        """True when ``model`` has this shape."""
        return (
            model.family in self.families
            and model.vocab_size in self.vocabulary
            and (model.hidden_size, model.layers) == (self.hidden_size, self.layers)
            and (model.heads, model.kv_heads) == (self.heads, self.kv_heads)
        )


LLAMA = ("llama", "llava")
# LLaVA adds an image token and rounds the vocabulary up to a multiple of 64.
LLAMA_2, LLAMA_3 = range(32000, 32065), range(128256, 128321)
QWEN, LARGE_QWEN = range(151936, 151937), range(152064, 152065)

# The Llama-2 entries are those of the code of VAR (VisAttnSink) and of the massive activations that
# it builds on; Llama-3 and Qwen are from third-party lists.
KNOWN = (
    KnownSinks("Llama-2-7B", LLAMA, 4096, 32, 32, 32, LLAMA_2, (1415, 2533)),
    KnownSinks("Llama-2-13B", LLAMA, 5120, 40, 40, 40, LLAMA_2, (2100, 4743)),
    KnownSinks("Llama-3-8B", LLAMA, 4096, 32, 32, 8, LLAMA_3, (788, 1384, 4062)),
    KnownSinks("Qwen2.5-VL-3B", ("qwen2_5_vl",), 2048, 36, 16, 2, QWEN, (318, 1819, 1874)),
    KnownSinks("Qwen2.5-VL-7B", ("qwen2_5_vl",), 3584, 28, 28, 4, LARGE_QWEN, (458, 2570)),
    KnownSinks("Qwen2.5-VL-32B", ("qwen2_5_vl",), 5120, 64, 40, 8, LARGE_QWEN, (3094, 4675)),
    KnownSinks("Qwen3-VL-2B", ("qwen3_vl",), 2048, 28, 16, 8, QWEN, (1401, 1793, 1999)),
    KnownSinks("Qwen3-VL-4B", ("qwen3_vl",), 2560, 36, 32, 8, QWEN, (0,)),
    KnownSinks("Qwen3-VL-8B", ("qwen3_vl",), 4096, 36, 32, 8, QWEN, (1838,)),
)


def find_sink_dims(
    model: ServedModel, first: int | None = None, prompts: int = 20, length: int = 24
) -> tuple[int, ...]:
    """The model's sink dimensions; empty when it has none.

    ``prompts`` short random prompts, which begin as :func:`first_residuals` says, run through the
    model, and the dimensions are taken in which |x| / RMS(x) of the first token exceeds the default
    threshold (median over prompts, best of the middle layers), strongest first. Published ones may
    take their place, see above.
    """
    middle = range(model.layers // 4, 3 * model.layers // 4 + 1)
    residuals = first_residuals(model, middle, prompts, length, first)
    measured = strongest_dims(residuals, default_threshold(model.hidden_size))
    known = next((known for known in KNOWN if known.matches(model)), None)
    return measured if known is None else choose_dims(known, measured)


def choose_dims(known: KnownSinks, measured: tuple[int, ...]) -> tuple[int, ...]:
    """The published dimensions, or those measured where they disagree."""
    if set(measured) <= set(known.dims):
        found = f"{list(measured)} were measured" if measured else "none were measured"
        logger.info("sink dimensions %s of %s; %s", list(known.dims), known.name, found)
        return known.dims
    logger.warning(
        "the model has the shape of %s, but not its sink dimensions %s: measured %s, which count; "
        "a request may name others as sink_dims",
        known.name,
        list(known.dims),
        list(measured),
    )
    return measured


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
    model: ServedModel, layers: Iterable[int], prompts: int, length: int, first: int | None = None
) -> torch.Tensor:
    """Residuals of the first token of random prompts, entering each of ``layers``.

    They begin with the token ``first``; if it is None with the BOS; or, without one, anyhow.

    Returns:
        float32 on the CPU, [layers, prompts, hidden_size].
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocab_size, (prompts, length), generator=generator)
    first = model.bos_token_id if first is None else first
    if first is not None:
        tokens[:, 0] = first
    cache = ScratchCache(model, prompts, length)
    probe = _FirstTokens(frozenset(layers), torch.arange(prompts) * length)
    step = cache.step([(sequence, length) for sequence in range(prompts)], probes=(probe,))
    positions = model.positions(range(length)).table.repeat(1, prompts)
    with torch.no_grad():
        embeddings = model.embed(tokens.flatten().to(model.device))
        model.forward(embeddings, positions.to(model.device), step)
    return torch.stack([probe.seen[layer] for layer in sorted(probe.layers)])


@dataclass(frozen=True)
class _FirstTokens:
    """A probe that keeps the residuals of some rows."""

    kind: ClassVar[SiteKind] = SiteKind.RESIDUAL
    layers: frozenset[int]
    rows: torch.Tensor  # int64 [N]
    seen: dict[int, torch.Tensor] = field(default_factory=dict)  # by layer, [N, hidden_size]

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        self.seen[layer] = hidden[self.rows.to(hidden.device)].float().cpu()
