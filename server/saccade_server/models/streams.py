"""Editing the residual stream: hooks installed once at load, tables that tell them what to do.

Before each decoder layer, and behind the last, a hook looks whether the step edits residuals there.
A plain step pays one attribute check a layer. No hook is ever added or removed for a request.

Probes (:mod:`~saccade_server.models.probes`) come after: they see what edits left, which is what
the layer sees. Families that add image features between layers (Qwen3-VL) add them before the next
layer's edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from saccade_kernels import ops
from saccade_kernels.stream_tables import StreamTables


@dataclass(frozen=True)
class StreamStep:
    """What a step does to residuals; its rows follow the tables' rows as attention's do.

    ``layers``: no row of the step has an edit at another residual.
    """

    tables: StreamTables
    layers: frozenset[int]


class _StreamHook:
    """Edits one residual of a step. Works before a layer, or behind it."""

    def __init__(self, residual: int) -> None:
        self._residual = residual

    def before(
        self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
        """The layer's arguments with another hidden state; None: as they are."""
        if not self._acts(kwargs):
            return None
        if args:
            return (self._edit(args[0], kwargs), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._edit(kwargs["hidden_states"], kwargs)}

    def behind(
        self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor
    ) -> torch.Tensor | None:
        """The layer's output; None: as it is."""
        return self._edit(output, kwargs) if self._acts(kwargs) else None

    def _acts(self, kwargs: Mapping[str, Any]) -> bool:
        step = kwargs.get("step")
        return (
            step is not None and step.streams is not None and self._residual in step.streams.layers
        )

    def _edit(self, hidden: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
        """hidden [1, tokens, hidden_size], and the same back."""
        step = kwargs["step"]
        rows, tables = step.batch.control_rows, step.streams.tables
        return ops.stream(hidden[0], rows, tables, self._residual)[None]


def install_streams(model: Any) -> None:
    """Give every decoder layer of a transformers model its hooks; repeating it changes nothing."""
    decoder = model.get_decoder()
    if getattr(decoder, "_saccade_streams", False):
        return
    for index, layer in enumerate(decoder.layers):
        layer.register_forward_pre_hook(_StreamHook(index).before, with_kwargs=True)
    last = _StreamHook(len(decoder.layers))
    decoder.layers[-1].register_forward_hook(last.behind, with_kwargs=True)
    decoder._saccade_streams = True
