"""What every served model offers the engine: embed, encode images, place, forward, logits.

A served model holds weights and nothing else: no cache, no request, no position state. Its layers
are a decoder of ours; of a vision-language model only the tower is transformers' at work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding

from saccade_kernels import ops
from saccade_server.models.attention import ForwardStep
from saccade_server.models.decoder import Decoder
from saccade_server.models.description import Traits, describe
from saccade_server.models.folder import UnsupportedModelError
from saccade_server.models.sites import Visual
from saccade_server.models.spec import DecoderSpec
from saccade_server.models.views import Grid, ImageLayout

ImagePixels = tuple[NDArray[np.float32] | torch.Tensor, Grid | None]
"""Pixels and grid of one view of an image, see :class:`saccade_server.models.views.View`."""

ImageSpan = tuple[int, int, Grid | None]
"""First position of a view's features, their number, and the grid."""


@dataclass(frozen=True)
class ImageFeatures:
    """One encoded view of an image."""

    features: torch.Tensor  # [n, hidden_size], take the place of the placeholders' embeddings
    deepstack: tuple[torch.Tensor, ...] = ()  # [n, hidden_size] each, added behind the first layers


@dataclass(frozen=True)
class Positions:
    """Rotary positions of a prompt, and where decoding goes on.

    The position of a token behind the prompt is its index plus ``delta``, on every axis.
    """

    table: torch.Tensor  # int64 [axes, n]
    delta: int = 0


class ServedModel:
    """The operations one forward step needs: a decoder of ours, and what lies around it.

    A family is a subclass: its traits, and what is its own about images and positions.
    """

    family: ClassVar[str]
    traits: ClassVar[Traits] = Traits()
    layout: ClassVar[type[ImageLayout] | None] = None
    """Of the images that prompts may have; None: they have none."""
    axes: ClassVar[int] = 1
    """Rows of a position table: 1, or 3 where images have frames, rows and columns."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """Take a transformers model whose configuration was checked; its layers become ours.

        Raises:
            UnsupportedModelError: its weights are not what its configuration says.
        """
        text, spec = model.config.get_text_config(), self.describe(model.config)
        module = model.get_decoder()
        prefix = next(f"{name}." for name, part in model.named_modules() if part is module)
        self.decoder = Decoder.take(module, spec, prefix, device)
        self.model = model.to(device)  # embeddings, final norm, output layer, vision tower
        self.layers = len(spec.layers)
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.head_dim
        self.hidden_size = spec.hidden_size
        self.max_position: int = text.max_position_embeddings
        generation = getattr(model, "generation_config", None)
        self.eos_token_ids = eos_token_ids(generation, model.config, text)
        self.image_token_id: int | None = getattr(model.config, "image_token_id", None)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = device
        self._embeddings: torch.Tensor = model.get_input_embeddings().weight
        # Rounded to float32, then to the weights' dtype, as transformers does.
        self._scale = torch.tensor(spec.embedding_scale).to(self.dtype).item()
        self._head: torch.Tensor = model.get_output_embeddings().weight
        self.vocab_size = self._head.shape[0]
        begins = text.bos_token_id
        has_bos = begins is not None and 0 <= begins < self.vocab_size
        self.bos_token_id: int | None = begins if has_bos else None
        self.parameters = self.decoder.parameters

    @classmethod
    def describe(cls, config: Any) -> DecoderSpec:
        """The decoder that a configuration of the family means.

        Raises:
            UnsupportedModelError: it cannot be served.
        """
        return describe(config.get_text_config(), cls.traits)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight as the checkpoint has it, by name; tied ones once."""
        yield from self.model.named_parameters()
        yield from self.decoder.named_weights()

    def embed(self, tokens: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings [T, hidden_size] of token ids int64 [T], in ``out`` if it is given."""
        if out is None:
            embeddings = embedding(tokens, self._embeddings)
        else:
            embeddings = torch.index_select(self._embeddings, 0, tokens, out=out)
        return embeddings if self._scale == 1 else torch.mul(embeddings, self._scale, out=out)

    def encode_images(self, images: Sequence[ImagePixels]) -> list[ImageFeatures]:
        """Run the vision tower, once for all ``images``, a view each.

        Raises:
            ValueError: the model takes no images, or these pixels are not what it takes.
        """
        raise ValueError(f"{self.family} models take no images")

    def positions(self, tokens: Sequence[int], images: Sequence[ImageSpan] = ()) -> Positions:
        """Rotary positions of a sequence whose image features lie at ``images``."""
        return Positions(torch.arange(len(tokens))[None].repeat(self.axes, 1))

    def forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        step: ForwardStep,
        visual_rows: torch.Tensor | None = None,
        deepstack: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """Run the decoder over one packed step.

        Args:
            embeddings: [T, hidden_size], image features already in place.
            positions: int64 [axes, T].
            visual_rows: int64 [N], the rows that ``deepstack`` belongs to, if there are any.
            deepstack: per level [N, hidden_size], for families that have it.

        Returns:
            Hidden states behind the final norm, [T, hidden_size].
        """
        visual = None if visual_rows is None else Visual(visual_rows, deepstack)
        return self.decoder.forward(embeddings, positions, step, visual)

    def logits(self, hidden: torch.Tensor, invariant: bool = False) -> torch.Tensor:
        """Logits [n, vocab_size] of hidden states [n, hidden_size], float32 or wider.

        ``invariant``: a row's bits do not depend on the others.
        """
        logits = self.project(hidden, invariant)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def project(self, hidden: torch.Tensor, invariant: bool = False) -> torch.Tensor:
        """As :meth:`logits`, in the dtype of the weights."""
        return ops.linear(hidden, self._head, invariant=invariant)

    def through_head(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of hidden states [n, hidden_size] that one of logits leads to."""
        return torch.mm(grad.to(self._head.dtype), self._head)

    def early_logits(
        self, hidden: torch.Tensor, norm: bool, invariant: bool = False
    ) -> torch.Tensor:
        """Logits of residuals between layers [n, hidden_size], as :meth:`logits`.

        ``norm``: the final norm is applied to them first.
        """
        return self.logits(self.normed(hidden) if norm else hidden, invariant)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm of residuals [n, hidden_size]."""
        return ops.rms_norm(hidden, self.decoder.norm)

    def _pixels(self, pixels: NDArray[np.float32] | torch.Tensor) -> torch.Tensor:
        """Put one image's pixels where the model is."""
        return torch.as_tensor(pixels).to(self.device, self.dtype)


def eos_token_ids(*sources: Any) -> tuple[int, ...]:
    """Every token that ends a sequence, from a model's generation config and its configs.

    Raises:
        UnsupportedModelError: something else is named there.
    """
    found: set[int] = set()
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        named = ids if isinstance(ids, list | tuple) else [ids]
        if not all(token is None or isinstance(token, int) for token in named):
            raise UnsupportedModelError(
                f"eos_token_id is {ids!r} in the model's config.json or generation_config.json, "
                "which is no token id; correct it"
            )
        found.update(token for token in named if token is not None)
    return tuple(sorted(found))
