"""What a method may know when it compiles: the model's sizes and the prompt's spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from saccade_interventions.builder import PlanBuilder
from saccade_kernels.controls import ControlShape

Span = tuple[int, int]
"""Token positions, end exclusive."""


@dataclass(frozen=True)
class ModelFacts:
    """The served model, as far as interventions are concerned.

    ``sink_dims``: dimensions of massive activations in the residual stream; empty if none found.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    sink_dims: tuple[int, ...] = ()
    accepts_images: bool = True

    @property
    def shape(self) -> ControlShape:
        """Sizes of a program for this model."""
        return ControlShape(self.layers, self.heads, self.head_dim)


@dataclass(frozen=True)
class Prompt:
    """A rendered, tokenised prompt with its images expanded.

    ``text`` is the rendered prompt; ``offsets[i]`` is the (start, end) range of characters that
    token i covers, an empty range for the image tokens after the first of an image.
    """

    length: int
    images: tuple[Span, ...] = ()
    text: str = ""
    offsets: Sequence[tuple[int, int]] = field(default=(), repr=False)

    @property
    def question_start(self) -> int:
        """First position after the last image; 0 without an image."""
        return max((end for _, end in self.images), default=0)

    def find(self, needle: str) -> tuple[Span, ...]:
        """Token spans of every occurrence of ``needle``: all tokens that overlap it."""
        spans: list[Span] = []
        at = self.text.find(needle) if needle else -1
        while at >= 0:
            end = at + len(needle)
            hit = [i for i, (s, e) in enumerate(self.offsets) if s < end and e > at]
            if hit:
                spans.append((hit[0], hit[-1] + 1))
            at = self.text.find(needle, end)
        return tuple(spans)


@dataclass(frozen=True)
class Context:
    """The argument of a method's ``compile``."""

    model: ModelFacts
    prompt: Prompt

    def plan(self) -> PlanBuilder:
        """A fresh plan for this prompt."""
        return PlanBuilder(self.model.shape, self.prompt.length, self.prompt.question_start)
