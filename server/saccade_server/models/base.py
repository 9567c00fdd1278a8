"""What every served model offers the engine: embed, encode images, place, forward, logits.

A served model holds weights and nothing else: no cache, no request, no position state. It calls
the text decoder directly, never the forward of a vision-language model, because that one keeps
mutable rotary state from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_server.models.attention import ForwardStep
from saccade_server.models.folder import UnsupportedModelError

Grid = tuple[int, int, int]
"""Frames, rows and columns of an image in patches."""

ImagePixels = tuple[NDArray[np.float32] | torch.Tensor, Grid | None]
"""Pixels as the family's image processor makes them, and their grid if it makes one."""

ImageSpan = tuple[int, int, Grid | None]
"""First position of an image's features, their number, and the grid."""


@dataclass(frozen=True)
class ImageFeatures:
    """One encoded image."""

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
    """A transformers model behind the operations one forward step needs."""

    family: ClassVar[str]
    axes: ClassVar[int] = 1
    """Rows of a position table: 1, or 3 where images have frames, rows and columns."""

    def __init__(self, model: Any) -> None:
        text = model.config.get_text_config()
        self.model = model
        self.layers: int = text.num_hidden_layers
        self.heads: int = text.num_attention_heads
        self.kv_heads: int = getattr(text, "num_key_value_heads", None) or self.heads
        self.hidden_size: int = text.hidden_size
        self.head_dim: int = getattr(text, "head_dim", None) or self.hidden_size // self.heads
        self.max_position: int = text.max_position_embeddings
        generation = getattr(model, "generation_config", None)
        self.eos_token_ids = eos_token_ids(generation, model.config, text)
        self.image_token_id: int | None = getattr(model.config, "image_token_id", None)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self._decoder = model.get_decoder()
        self._embeddings = model.get_input_embeddings()
        self._head = model.get_output_embeddings()
        self.vocab_size: int = self._head.weight.shape[0]
        begins = text.bos_token_id
        has_bos = begins is not None and 0 <= begins < self.vocab_size
        self.bos_token_id: int | None = begins if has_bos else None
        self.parameters = sum(weight.numel() for weight in self._decoder.parameters())

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings [T, hidden_size] of token ids int64 [T]."""
        embeddings: torch.Tensor = self._embeddings(tokens)
        return embeddings

    def encode_images(self, images: Sequence[ImagePixels]) -> list[ImageFeatures]:
        """Run the vision tower, once for all ``images``.

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
            visual_rows: bool [T], the rows that ``deepstack`` belongs to, if there are any.
            deepstack: per level [visual rows, hidden_size], for families that have it.

        Returns:
            Hidden states behind the final norm, [T, hidden_size].
        """
        output = self._decoder(
            inputs_embeds=embeddings[None],
            position_ids=positions if self.axes == 1 else positions[:, None],
            use_cache=False,
            step=step,
            **self._visual_arguments(visual_rows, deepstack),
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [n, vocab_size] of hidden states [n, hidden_size], float32 or wider."""
        logits: torch.Tensor = self._head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def early_logits(self, hidden: torch.Tensor, norm: bool) -> torch.Tensor:
        """Logits of residuals between layers [n, hidden_size], as :meth:`logits`.

        ``norm``: the final norm is applied to them first.
        """
        return self.logits(self._decoder.norm(hidden) if norm else hidden)

    def _visual_arguments(
        self, visual_rows: torch.Tensor | None, deepstack: Sequence[torch.Tensor]
    ) -> dict[str, Any]:
        """Extra decoder arguments of families that show images to more than one layer."""
        return {}

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
