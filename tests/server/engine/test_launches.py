"""What a captured step launches, counted without a GPU: one padded step under a dispatch mode.

Every operation that computes something is a launch; views and allocations are none. Triton's
kernels stand in as what they launch on a GPU: one for a store, two for a decode (splits, merge),
one for stream edits. What a fused kernel saves shows here as a smaller number.
"""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saccade_kernels import layers, ops
from saccade_kernels.controls import CLASSES
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.decode import PLAIN
from saccade_server.models.family import serve
from saccade_server.models.streams import Reach

KERNELS = {"store": 1, "decode": 2, "stream": 1}


class Launches(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name
        if func._schema.is_mutable or self._is_new(output, args, name):
            self.found[name] += 1
        return output

    @staticmethod
    def _is_new(output: Any, args: Any, name: str) -> bool:
        """True if the operation made what it returns, and more of it than room."""
        if not isinstance(output, torch.Tensor) or name.startswith(("aten::empty", "aten::new_em")):
            return False
        given = [arg.untyped_storage() for arg in args if isinstance(arg, torch.Tensor)]
        return all(output.untyped_storage()._cdata != storage._cdata for storage in given)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """A mode that counts, with the kernels stood in for."""
    counted = Launches()

    def kernel(name: str) -> Any:
        def run(first: torch.Tensor, *rest: Any) -> torch.Tensor:
            counted.found[f"triton::{name}"] += KERNELS[name]
            return torch.empty(first.shape, dtype=first.dtype)

        return run

    def norm_rope_store(merged: Any, heads: Any, rotation: Any, *caches: Any) -> torch.Tensor:
        query, key, value = layers.norm_rope(merged, heads, rotation)
        backend.store(key, value, *caches)
        return query

    small = {name: getattr(layers, name) for name in ("rms_norm", "add_norm", "gate")}
    kernels = {name: kernel(name) for name in KERNELS}
    backend = SimpleNamespace(**small, **kernels, norm_rope_store=norm_rope_store)
    monkeypatch.setattr(ops, "_backend", lambda tensor: backend)
    return counted


def count(core: EngineCore, launches: Launches, variant: tuple[int, int, Reach]) -> tuple[int, int]:
    """Launches a layer, and around all layers."""
    padded, model = core._runner._decoder, core._runner.model.decoder
    assert padded is not None
    totals, layers_ = [], model._layers
    for used in (layers_, layers_[:-1]):
        model._layers = used
        run = padded.idle(variant)
        launches.found.clear()
        with torch.inference_mode(), launches:
            run()
        totals.append(launches.found.total())
    model._layers = layers_
    each = totals[0] - totals[1]
    return each, totals[0] - len(layers_) * each


EDITED, STREAMS = (CLASSES, Reach.NOWHERE), (CLASSES, Reach.RESIDUALS)
EVERYWHERE = (CLASSES, Reach.EVERYWHERE)
TODAY = {
    "llama": {
        (PLAIN, Reach.NOWHERE): (19, 21),
        EDITED: (19, 21),
        STREAMS: (20, 22),
        EVERYWHERE: (22, 22),
    },
    "qwen3_vl": {
        (PLAIN, Reach.NOWHERE): (21, 22),
        EDITED: (21, 22),
        STREAMS: (22, 23),
        EVERYWHERE: (24, 23),
    },
}
"""Launches a layer and around, by number of classes and the sites that are edited, in bfloat16;
transformers' layers took 46 a layer."""


@pytest.mark.parametrize("family", TODAY)
def test_a_step_launches(family: str, tiny_model: Any, launches: Launches) -> None:
    model = serve(tiny_model(family, dtype=torch.bfloat16))
    settings = {"dtype": "bfloat16", "padded_decode": True, "overlap": True}
    core = EngineCore(model, EngineConfig(model=family, cache_tokens=2048, **settings))
    found = {form: count(core, launches, (2, *form)) for form in TODAY[family]}
    assert found == TODAY[family], dict(launches.found)
