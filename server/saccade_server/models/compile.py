"""Compiled decoder layers: the small kernels between matrix products and attention, fused.

torch.compile runs transformers' own layer code, so every family stays equal to it by construction,
and Dynamo breaks the graph at our attention function, which it must not look into. Between products
and attention, Inductor leaves 6 fused kernels a layer (counted in its C++) where eager launches 30
in Llama and 46 in Qwen3. liger-kernel 0.8.5 would leave 6 in Llama and 9 in Qwen3-VL (by its
source: no residual fused, no SwiGLU there), replaces functions of transformers for the whole
process, and has nothing for a CPU.

One compilation serves all layers, because no guard depends on the layer: its index is read inside
attention only. Layers of a model that mixes window and full attention are two kinds. There are two
compilations, one token and several, and :func:`warm` makes both: nothing is compiled while serving.
The forward of a layer is replaced, not its call, so the hooks of
:mod:`~saccade_server.models.probes` stay outside.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch

from saccade_server.models.base import ServedModel
from saccade_server.models.family import UnsupportedModelError
from saccade_server.models.scratch import ScratchCache

__all__ = ["Compiler", "compilations", "compile_decoder", "warm"]

logger = logging.getLogger(__name__)

Compiler = Callable[[torch.fx.GraphModule, Sequence[Any]], Callable[..., Any]]
"""Makes a function of a graph and example inputs."""

# Eager rounds to the weights' type behind every operation; Inductor would keep float32 from one
# fused operation to the next. That is nearer to the exact result, but depends on what was fused:
# a request alone (one token) and in a batch (several) would round differently. This way bfloat16
# on a CPU is bit for bit what eager gives.
OPTIONS: dict[str, Any] = {"emulate_precision_casts": True}

WARM_STEPS = (1, 37)
"""Tokens of the steps that make every compilation: one, which dynamic shapes treat apart, and
several: a number that is no size of a model, or the two would be taken for the same."""


class CompiledDecoder:
    """What was compiled for one decoder: the backend that Dynamo hands graphs to.

    Sealed, it compiles no more: a graph that arrives all the same runs operation by operation, as
    uncompiled models do, and is logged, because it should have been made while warming.
    """

    def __init__(self, compiler: Compiler) -> None:
        self.compiled = 0
        self.sealed = False
        self._compiler = compiler

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        if self.sealed:
            logger.warning(
                "a step came in a form that was not compiled at the start (inputs %s); "
                "it runs uncompiled",
                ", ".join(_describe(value) for value in inputs),
            )
            return graph.forward
        self.compiled += 1
        return self._compiler(graph, inputs)


def inductor(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile with Inductor: C++ on a CPU, Triton on a GPU."""
    from torch._inductor.compile_fx import compile_fx

    compiled: Any = compile_fx(graph, inputs, config_patches=OPTIONS)
    return compiled  # type: ignore[no-any-return]


def compile_decoder(model: ServedModel, compiler: Compiler = inductor) -> None:
    """Fuse the decoder's elementwise work, in place; repeating it changes nothing.

    Nothing is compiled yet: call :func:`warm` next, before any CUDA graph is captured.

    Raises:
        UnsupportedModelError: this machine has no compiler for the model's device.
    """
    decoder = model.model.get_decoder()
    if _compiled(model) is not None:
        return
    _check_compiler(model.device)
    _set_up_dynamo()
    state = CompiledDecoder(compiler)
    for part in (*decoder.layers, decoder.norm, decoder.rotary_emb):
        part.forward = MethodType(_compile(type(part).forward, state), part)
    decoder.forward = MethodType(_uniform(type(decoder).forward), decoder)
    decoder._saccade_compiled = state


def compilations(model: ServedModel) -> int:
    """How many graphs were compiled for the model; 0 where :func:`compile_decoder` was not called.

    It must not change once the model serves.
    """
    state = _compiled(model)
    return 0 if state is None else state.compiled


def warm(model: ServedModel) -> None:
    """Compile everything that serving will need, then compile nothing more.

    Call it with the number of CPU threads that will be used: compiled C++ is made for it.

    Raises:
        UnsupportedModelError: compilation failed.
    """
    state = _compiled(model)
    if state is None or state.sealed:
        return
    cache = ScratchCache(model, 1, sum(WARM_STEPS))
    try:
        for tokens in WARM_STEPS:
            _warm_step(model, cache, tokens)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise UnsupportedModelError(f"cannot compile this model: {error}") from error
    state.sealed = True


@torch.inference_mode()
def _warm_step(model: ServedModel, cache: ScratchCache, tokens: int) -> None:
    ids = torch.zeros(tokens, dtype=torch.int64, device=model.device)
    positions = torch.zeros(model.axes, tokens, dtype=torch.int64, device=model.device)
    model.forward(model.embed(ids), positions, cache.step([(0, tokens)]))


def _compiled(model: ServedModel) -> CompiledDecoder | None:
    return getattr(model.model.get_decoder(), "_saccade_compiled", None)


def _compile(forward: Callable[..., Any], state: CompiledDecoder) -> Callable[..., Any]:
    # The function of the class, not a bound method: one code object with one cache for all layers.
    return torch.compile(forward, backend=state, dynamic=True)


def _set_up_dynamo() -> None:
    settings: Any = torch._dynamo.config
    # Dynamic shapes would also make inputs of numbers like a norm's epsilon, read by item().
    settings.specialize_float = True
    # Without it a break inside attention's module also cuts the layer in front of it and behind
    # it: four graphs a layer instead of two, with the same kernels.
    if hasattr(settings, "nested_graph_breaks"):
        settings.nested_graph_breaks = True


def _uniform(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let every step look alike to guards, which tell normal from inference tensors, and strides.

    Embeddings and positions may be new tensors or slices of buffers that CUDA graphs read.
    """

    @torch.inference_mode()
    def uniform(
        self: Any, *, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, **arguments: Any
    ) -> Any:
        return forward(
            self,
            inputs_embeds=_as_new(inputs_embeds),
            position_ids=_as_new(position_ids),
            **arguments,
        )

    return uniform


def _as_new(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy if it is not what an operation in inference mode would have made."""
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim)]
    if tensor.is_inference() and list(tensor.stride()) == strides:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _check_compiler(device: torch.device) -> None:
    """Refuse early, in words, what Inductor would refuse in a traceback."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UnsupportedModelError("compiling needs Triton, which does not work here")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, FileNotFoundError) as error:
        raise UnsupportedModelError("compiling for a CPU needs a C++ compiler (g++)") from error


def _describe(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else str(value)
