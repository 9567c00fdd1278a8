"""VHR's algorithm written out in transformers' own float64 forward.

The oracle knows no caches, chunks, tables or steps. For every measured layer it runs both prompts
anew, from token ids and pixels on (so transformers makes the positions of the shortened prompt),
with the gains of the layers below, and compares head outputs by the paper's equations in plain
Python; then it recomputes the whole sequence for every token.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from saccade_interventions.registry import Registry
from saccade_server.engine.request import GenerateRequest
from saccade_testing import engine
from saccade_testing.oracle import Said, attend, greedy, logits, remember_residuals

LAYERS = (1, 2, 3)  # the default of four: 1, and the last two
STEPS = 6
Edit = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Layer, scores [heads, rows, keys], visible image keys, residual, prompt length; attention."""


def select(z: torch.Tensor, z0: torch.Tensor, entry: dict[str, Any]) -> list[int]:
    """Equations 4, 6 and 7 for one layer; z and z0 are [heads, head_dim]."""
    vhd = [float((a - b).norm()) for a, b in zip(z, z0, strict=True)]
    if entry.get("relative"):
        vhd = [value / float(b.norm()) for value, b in zip(vhd, z0, strict=True)]
    ta = [float(b @ b) for b in z0]
    deviation = statistics.pstdev if entry.get("std") == "population" else statistics.stdev
    limit, size = (statistics.mean(x) + deviation(x) for x in (vhd, ta))
    if entry.get("drop_outliers", True):
        vhd = [0.0 if v > limit and t > size else v for v, t in zip(vhd, ta, strict=True)]
    return [i for i, value in enumerate(vhd) if value > statistics.median_low(vhd)]


@dataclass
class Oracle:
    """Two branches, one sweep over the layers, then greedy generation."""

    model: Any
    prompt: Any
    entry: dict[str, Any]
    edit: Edit = lambda layer, scores, image, residual, length: scores.softmax(-1)
    chosen: dict[int, list[int]] = field(default_factory=dict)
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._residuals = remember_residuals(self.model)
        attend(self.model, self._weigh, self.behind)

    @torch.no_grad()
    def measure(self) -> None:
        for layer in self.entry.get("layers", LAYERS):
            self.forward(list(self.prompt.tokens), gains=True)
            z = self.seen[layer]
            self.forward(self._bare(), gains=self.entry.get("branch_gains", True), bare=True)
            self.chosen[layer] = select(z, self.seen[layer], self.entry)

    def run(self, steps: int = STEPS) -> Said:
        tokens = list(self.prompt.tokens)
        return greedy(lambda tokens: self.forward(tokens, gains=True), tokens, steps)

    def forward(self, tokens: list[int], gains: bool, bare: bool = False) -> torch.Tensor:
        """Logits of the last token; head outputs of the last prompt row are left in ``seen``."""
        self._hides = bare and self.entry.get("without_image") == "hidden"
        images = () if bare and not self._hides else self.prompt.images
        self._image = torch.zeros(len(tokens), dtype=torch.bool)
        for image in images:
            self._image[image.start : image.start + image.length] = True
        ends = [i.start + i.length for i in self.prompt.images]
        length = len(self._bare()) if bare else len(self.prompt.tokens)
        question = max(ends) - (len(self.prompt.tokens) - length)
        rows = self.entry.get("rows", "prompt+generated").split("+")
        first = {"prompt": 0, "question": question, "last": length - 1, "generated": length}
        start = min(first[name] for name in rows)
        stop = length if "generated" not in rows else len(tokens)
        self._rows = range(start, stop) if gains else range(0)
        self._last = length - 1
        return logits(self.model, replace(self.prompt, images=tuple(images)), tokens)

    def _bare(self) -> list[int]:
        hidden = self.entry.get("without_image") == "hidden"
        return list(self.prompt.tokens if hidden else self.prompt.bare)

    def _weigh(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        if self._hides:
            scores = scores.masked_fill(self._image, -torch.inf)
        image = self._image & (not self._hides)
        weights = self.edit(layer, scores, image, self._residuals[layer], self._last + 1)
        return weights.nan_to_num(0.0)

    def behind(self, layer: int, output: torch.Tensor) -> torch.Tensor:
        """Heads' outputs [heads, rows, head_dim], those of the chosen heads multiplied."""
        self.seen[layer] = output[:, self._last].clone()
        for head in self.chosen.get(layer, ()):
            for row in self._rows:
                output[head, row] *= self.entry.get("gain", 2.0)
        return output


def heads_of(result: Any) -> dict[int, list[int]]:
    (found,) = result.last.receipt.findings
    return {layer: list(heads) for layer, heads in found.selected}


def ask(
    prompt: Any, entries: Any, name: str = "r", steps: int = STEPS, **sampling: Any
) -> GenerateRequest:
    """:func:`engine.ask` for entries as a client writes them, with log-probabilities."""
    methods = Registry.discover().parse(entries)
    return engine.ask(prompt, methods, name, steps, **{"logprobs": 1, **sampling})
