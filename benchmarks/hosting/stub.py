"""A model of the sizes of a 7B that computes nothing, so that an engine around it is all host.

Its vectors are :data:`WIDTH` wide, whatever it says of its hidden size: the tables of plans have
their real sizes, and what a step copies about is next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.models.base import ImageFeatures, Positions
from saccade_server.models.spec import DecoderSpec, LayerSpec

LAYERS, HEADS, HEAD_DIM, HIDDEN = 32, 32, 128, 4096
IMAGE_TOKENS = 576
IMAGE_SIDE = 336
SINK_DIMS = (1415, 2533)
VOCABULARY = 1000
WIDTH = 8
MAX_LEN = 4096 + 128
FINGERPRINT = "sha256:" + "7" * 64


class Reached(Exception):
    """A step has come to its forward pass; ``at`` is the process's CPU time then, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.at = time.process_time()


class StubModel:
    """The attributes of a ServedModel. Logits are zero, but for token 1."""

    family, axes = "stub", 1
    layers, heads, kv_heads, head_dim, hidden_size = LAYERS, HEADS, 1, HEAD_DIM, HIDDEN
    vocab_size, max_position = VOCABULARY, MAX_LEN
    eos_token_ids: tuple[int, ...] = ()
    image_token_id = 0
    bos_token_id = None
    parameters = 7_000_000_000
    dtype, device = torch.float32, torch.device("cpu")

    decoder = SimpleNamespace(
        spec=DecoderSpec(
            layers=(LayerSpec(),) * LAYERS,
            rotaries=(),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            heads=HEADS,
            kv_heads=1,
            head_dim=HEAD_DIM,
            epsilon=1e-5,
            activation="silu",
            scale=1.0,
        )
    )

    def __init__(self, stops: bool = False) -> None:
        """``stops``: a forward pass raises :class:`Reached`."""
        self._stops = stops
        self._zeros = torch.zeros(1, VOCABULARY)
        self._zeros[0, 1] = 1

    def embed(self, tokens: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return torch.zeros(len(tokens), WIDTH)

    def encode_images(self, images: Sequence[Any]) -> list[ImageFeatures]:
        return [ImageFeatures(torch.zeros(IMAGE_TOKENS, WIDTH)) for _ in images]

    def positions(self, tokens: Sequence[int], images: Sequence[Any] = ()) -> Positions:
        return Positions(torch.arange(len(tokens))[None])

    def forward(self, embeddings: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if self._stops:
            raise Reached
        return embeddings

    def logits(self, hidden: torch.Tensor, invariant: bool = False) -> torch.Tensor:
        return self._zeros.expand(len(hidden), -1)

    def project(self, hidden: torch.Tensor, invariant: bool = False) -> torch.Tensor:
        return self.logits(hidden)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def early_logits(
        self, hidden: torch.Tensor, norm: bool, invariant: bool = False
    ) -> torch.Tensor:
        return self.logits(hidden)


def engine(stops: bool = False, **limits: Any) -> EngineCore:
    """An engine over the stub; ``limits`` are those of EngineConfig."""
    sizes = {"max_num_seqs": 32, "max_batched_tokens": 8192, "cache_tokens": 4 * MAX_LEN}
    config = EngineConfig(model="stub", max_model_len=MAX_LEN, **{**sizes, **limits})
    model: Any = StubModel(stops)
    return EngineCore(model, config, SINK_DIMS, FINGERPRINT)
