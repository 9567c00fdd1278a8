"""What a model computes on single prompts: residuals and head outputs, outside the engine.

Each prompt runs alone, plain, through the same model and attention that serve requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from saccade_kernels.residual import SiteKind
from saccade_server.calibration.examples import CalibrationError, Labelled
from saccade_server.models.attention import AttentionCall
from saccade_server.models.base import ImageSpan, ServedModel
from saccade_server.models.conversation import PromptError
from saccade_server.models.prompt import PromptProcessor, RenderedPrompt
from saccade_server.models.scratch import ScratchCache


@dataclass(frozen=True)
class Activations:
    """Of one prompt, float32 on the CPU.

    ``at_site``: by number of residual or layer, [hidden_size], of the row that was read.
    ``heads``: [layers, heads, head_dim], head outputs of that row; ``head_means``: likewise, the
    mean over all rows.
    """

    at_site: dict[int, torch.Tensor]
    heads: torch.Tensor
    head_means: torch.Tensor


class Reader:
    """Runs prompts and keeps what was asked for."""

    def __init__(self, model: ServedModel, prompts: PromptProcessor) -> None:
        self._model = model
        self._prompts = prompts

    @torch.inference_mode()
    def read(
        self, example: Labelled, layers: Iterable[int], site: SiteKind = SiteKind.RESIDUAL
    ) -> Activations:
        """Run one prompt and keep what the site of some layers holds.

        Raises:
            CalibrationError: the prompt cannot be built or is too long.
        """
        prompt, row = self._render(example)
        model, length = self._model, len(prompt.tokens)
        cache = ScratchCache(model, 1, length)
        held = _Held(site, frozenset(layers), row)
        heads = _HeadOutputs(frozenset(range(model.layers)), row)
        step = replace(cache.step([(0, length)], probes=(held,)), measures=(heads,))
        images: list[ImageSpan] = [
            (image.start, image.length, image.grid) for image in prompt.images
        ]
        positions = model.positions(prompt.tokens, images).table.to(model.device)
        embeddings, visual, deepstack = self._embed(prompt)
        model.forward(embeddings, positions, step, visual, deepstack)
        every = sorted(heads.last)
        return Activations(
            held.seen,
            torch.stack([heads.last[layer] for layer in every]),
            torch.stack([heads.means[layer] for layer in every]),
        )

    def _render(self, example: Labelled) -> tuple[RenderedPrompt, int]:
        """The prompt, and the row to read: the last one, or that of the answer's last token."""
        answer = example.said
        try:
            prompt = self._prompts.chat(example.as_messages(), add_generation_prompt=answer is None)
        except PromptError as error:
            raise CalibrationError(f"{example.place}: {error}") from None
        length = len(prompt.tokens)
        if not 2 <= length <= self._model.max_position:
            most = self._model.max_position
            message = f"{example.place}: a prompt of {length} tokens; the model takes 2 to {most}"
            raise CalibrationError(message)
        if answer is None:
            return prompt, length - 1
        end = prompt.text.rfind(answer.strip()) + len(answer.strip())
        rows = [row for row, (start, stop) in enumerate(prompt.offsets) if start < end <= stop]
        if not answer.strip() or not rows:
            raise CalibrationError(f"{example.place}: the answer is not in the rendered prompt")
        return prompt, rows[-1]

    def _embed(
        self, prompt: RenderedPrompt
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]:
        """Embeddings with image features in place; see :meth:`ServedModel.forward`."""
        model = self._model
        embeddings = model.embed(torch.tensor(prompt.tokens, device=model.device))
        if not prompt.images:
            return embeddings, None, ()
        encoded = model.encode_images([(image.pixels, image.grid) for image in prompt.images])
        rows: list[torch.Tensor] = []
        for image, found in zip(prompt.images, encoded, strict=True):
            place = slice(image.start, image.start + image.length)
            embeddings[place] = found.features.to(embeddings.dtype)
            rows.append(torch.arange(place.start, place.stop, device=model.device))
        levels = zip(*(found.deepstack for found in encoded), strict=True)
        return embeddings, torch.cat(rows), tuple(torch.cat(level) for level in levels)


@dataclass(frozen=True)
class _Held:
    """A probe that keeps one row of what a site of some layers holds."""

    kind: SiteKind
    layers: frozenset[int]
    row: int
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        self.seen[layer] = hidden[self.row].float().cpu()


@dataclass(frozen=True)
class _HeadOutputs:
    """A measure that keeps head outputs, before the output projection."""

    layers: frozenset[int]
    row: int
    last: dict[int, torch.Tensor] = field(default_factory=dict)
    means: dict[int, torch.Tensor] = field(default_factory=dict)

    def before(self, call: AttentionCall) -> None:
        return

    def after(self, call: AttentionCall, output: torch.Tensor) -> torch.Tensor:
        self.last[call.layer] = output[self.row].float().cpu()
        self.means[call.layer] = output.float().mean(0).cpu()
        return output
