"""What interventions may know of the served model."""

from __future__ import annotations

from dataclasses import dataclass

from saccade_kernels.controls import ControlShape


@dataclass(frozen=True)
class ModelFacts:
    """The served model, as far as interventions are concerned.

    ``sink_dims``: dimensions of massive activations in the residual stream; empty if none found.
    ``fingerprint``: content hash of the model, "sha256:..."; artifacts say which one they are for.
    ``special_tokens``: ids that stand for no text.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    sink_dims: tuple[int, ...] = ()
    accepts_images: bool = True
    fingerprint: str = ""
    special_tokens: tuple[int, ...] = ()

    @property
    def shape(self) -> ControlShape:
        """Sizes of a program for this model."""
        return ControlShape(self.layers, self.heads, self.head_dim)
