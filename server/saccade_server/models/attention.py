"""The one attention function of every served model, and the step it is called with.

transformers calls it in each layer of the text decoder. It receives the whole step as one keyword,
:class:`ForwardStep`, which travels untouched from the decoder's forward call; there is no global
state and no transformers cache. Vision towers keep their own attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from saccade_kernels import ops
from saccade_kernels.batch import AttentionBatch, Emission
from saccade_server.models.probes import LayerProbe
from saccade_server.models.streams import StreamStep

ATTENTION_NAME = "saccade"
"""Name under which transformers knows the attention function.

It is registered with no mask function of the same name, so transformers builds no mask at all.
"""


@dataclass(frozen=True)
class ForwardStep:
    """Everything one forward pass needs besides embeddings and positions.

    ``sinks`` are the probes of this step, ``measures`` what looks at its attention; a plain step
    has none. ``again`` computes attention in another way, for rows that already have been computed.
    """

    batch: AttentionBatch
    key_caches: Sequence[torch.Tensor]  # per layer [pages, PAGE, kv_heads, head_dim]
    value_caches: Sequence[torch.Tensor]  # likewise
    sinks: tuple[LayerProbe, ...] = ()
    measures: tuple[AttentionMeasure, ...] = ()
    streams: StreamStep | None = None  # what it does to residuals; None: nothing
    again: AttentionAgain | None = None


@dataclass(frozen=True)
class AttentionCall:
    """One layer's attention of a step; the arguments of :func:`ops.attention`."""

    query: torch.Tensor  # [tokens, heads, head_dim]
    key: torch.Tensor  # [tokens, kv_heads, head_dim]
    value: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    batch: AttentionBatch
    layer: int
    scale: float
    softcap: float
    window: int

    def run(self, emit: Emission | None = None) -> torch.Tensor:
        """Store the keys and values, then attend: [tokens, heads, head_dim]."""
        return ops.attention(
            self.query,
            self.key,
            self.value,
            self.key_cache,
            self.value_cache,
            self.batch,
            self.layer,
            self.scale,
            self.softcap,
            self.window,
            emit,
        )


class AttentionMeasure(Protocol):
    """Something that measures the attention of some layers and completes the edits of that layer.

    It works on the device alone: it may write the rows of the control and tag tables that its own
    sequences hold, and nothing is read back to the host.
    """

    @property
    def layers(self) -> frozenset[int]:
        """The layers it measures."""
        ...

    def before(self, call: AttentionCall) -> None:
        """Look at a call before it runs; the step's keys are not stored yet."""
        ...

    def after(self, call: AttentionCall, output: torch.Tensor) -> torch.Tensor:
        """Look at head outputs [tokens, heads, head_dim]; returns what goes on."""
        ...


class AttentionAgain(Protocol):
    """Attention of rows whose keys and values are in the cache already."""

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Head outputs [tokens, heads, head_dim]; nothing is stored."""
        ...


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    step: ForwardStep | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed step, in the signature transformers calls.

    Args:
        module: the layer's attention module; its ``layer_idx`` is the layer.
        query: [1, heads, tokens, head_dim]; key and value [1, kv_heads, tokens, head_dim].
        attention_mask: ignored, the step's batch says what is visible.

    Returns:
        [1, tokens, heads, head_dim], and no weights.

    Raises:
        RuntimeError: when the model was called without a step.
    """
    if step is None:
        raise RuntimeError(
            "this model runs Saccade's paged attention and needs step=ForwardStep(...); "
            "call it through ServedModel.forward"
        )
    layer = module.layer_idx
    call = AttentionCall(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        step.key_caches[layer],
        step.value_caches[layer],
        step.batch,
        layer,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap or 0.0,
        sliding_window or 0,
    )
    if step.again is not None:
        return step.again.attend(call)[None], None
    measures = [measure for measure in step.measures if layer in measure.layers]
    for measure in measures:
        measure.before(call)
    output = call.run()
    for measure in measures:
        output = measure.after(call, output)
    return output.contiguous()[None], None


# Compiled layers (models/compile.py) call it without looking into it: it reads the layer's index
# and the step, and guards on either would compile every layer anew.
_opaque_attention: Any = torch.compiler.disable(paged_attention)  # type: ignore[no-untyped-call]


def register_attention() -> None:
    """Make the attention function known to transformers; repeating it changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, _opaque_attention)
