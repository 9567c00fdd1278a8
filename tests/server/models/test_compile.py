"""Compiled layers give what transformers' own give, in every form of a step, compiled once."""

import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from saccade_server.models import compile as compiling
from saccade_server.models.compile import compilations, compile_decoder, warm
from saccade_server.models.family import ServedModel, UnsupportedModelError, serve
from saccade_server.models.scratch import ScratchCache

FAMILIES = ["llama", "qwen3", "llava", "qwen2_5_vl", "qwen3_vl"]
# Rows of each sequence, step after step: alone and packed, decodes and chunks, windows full.
STEPS: list[list[tuple[int, int]]] = [
    [(0, 5)],
    [(0, 7), (1, 9)],
    [(0, 1)],
    [(0, 1), (1, 1)],
    [(1, 1), (0, 1), (2, 30)],
    [(0, 1), (1, 1), (2, 1)],
    [(2, 1)],
    [(0, 40)],
]


@pytest.fixture(autouse=True)
def _dynamo() -> Iterator[None]:
    """Compiled code belongs to a function of transformers, hence to every test's model."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(nested_graph_breaks=False, specialize_float=False):
        yield
    torch._dynamo.reset()


def traced_only(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A compiler that changes nothing: fast, and what surrounds it is the same."""
    return graph.forward


@dataclass(frozen=True)
class Recorder:
    layers: frozenset[int]
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        self.seen[layer] = hidden.clone()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the module logged; Dynamo traces through loggers too."""
    return [r.getMessage() for r in caplog.records if r.name == compiling.__name__]


def twins(model: Any, compiler: Any) -> tuple[ServedModel, ServedModel]:
    """The same model twice: as it is, and compiled and warm."""
    plain, compiled = serve(copy.deepcopy(model)), serve(copy.deepcopy(model))
    compile_decoder(compiled, compiler)
    warm(compiled)
    return plain, compiled


class Run:
    """A model that computes :data:`STEPS` one after the other."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self.cache = ScratchCache(served, 3, 128)

    @torch.inference_mode()
    def step(self, new: list[tuple[int, int]], sinks: Any = ()) -> torch.Tensor:
        starts = [self.cache.lengths[sequence] for sequence, _ in new]
        table = torch.cat([torch.arange(s, s + n) for s, (_, n) in zip(starts, new, strict=True)])
        tokens = 10 + table * 7 % 80
        positions = table.expand(self.served.axes, -1)
        embeddings = self.served.embed(tokens.to(self.served.device))
        return self.served.forward(
            embeddings, positions.to(self.served.device), self.cache.step(new, sinks)
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_runs_what_was_compiled_at_the_start(
    family: str, tiny_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    plain, compiled = (Run(model) for model in twins(tiny_model(family), traced_only))
    made = compilations(compiled.served)
    # Rotation, final norm, and a layer in front of attention and behind it; one token and several.
    # The tiny Qwen3 mixes layers with a window and without one.
    assert made == (10 if family == "qwen3" else 8)
    for index, new in enumerate(STEPS):
        probes = [Recorder(frozenset({0, 2})), Recorder(frozenset({0, 2}))]
        sinks = [(probe,) if index % 2 else () for probe in probes]
        want, got = plain.step(new, sinks[0]), compiled.step(new, sinks[1])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        for layer, hidden in probes[0].seen.items():
            torch.testing.assert_close(probes[1].seen[layer], hidden, rtol=0, atol=1e-12)
        assert set(probes[1].seen) == ({0, 2} if index % 2 else set())
    assert compilations(compiled.served) == made
    assert not warnings_in(caplog)


def test_features_shown_to_more_layers_compile_nothing(
    tiny_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    plain, compiled = twins(tiny_model("qwen3_vl"), traced_only)
    for tokens, rows in ((9, 4), (1, 1)):
        embeddings = torch.randn(tokens, 64, dtype=torch.float64)
        positions = torch.arange(tokens).expand(3, -1)
        visual = torch.arange(tokens) < rows
        deepstack = [torch.randn(rows, 64, dtype=torch.float64) for _ in range(2)]
        want, got, unseen = (
            model.forward(
                embeddings, positions, ScratchCache(model, 1, 16).step([(0, tokens)]), *shown
            )
            for model, shown in (
                (plain, (visual, deepstack)),
                (compiled, (visual, deepstack)),
                (compiled, ()),
            )
        )
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        assert (got - unseen).abs().max() > 0.01
    assert not warnings_in(caplog)


def test_slices_of_buffers_and_other_modes_compile_nothing(
    tiny_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    plain, compiled = twins(tiny_model("qwen2_5_vl"), traced_only)
    rows, table = torch.randn(16, 64, dtype=torch.float64), torch.arange(16).repeat(3, 1)
    modes = (torch.inference_mode, torch.no_grad, torch.enable_grad)
    for tokens, mode in itertools.product((1, 4), modes):
        with mode():
            want, got = (
                model.forward(
                    rows[:tokens],
                    table[:, :tokens],
                    ScratchCache(model, 1, 16).step([(0, tokens)]),
                )
                for model in (plain, compiled)
            )
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        assert not got.requires_grad
    assert not warnings_in(caplog)


def test_what_was_not_compiled_runs_all_the_same_and_is_logged(
    tiny_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    plain, compiled = (Run(model) for model in twins(tiny_model("llama"), traced_only))
    made = compilations(compiled.served)
    torch._dynamo.reset()  # forgets everything: each step now looks like one never seen
    with caplog.at_level(logging.WARNING, compiling.__name__):
        got = compiled.step([(0, 6)])
    torch.testing.assert_close(got, plain.step([(0, 6)]), rtol=0, atol=1e-12)
    assert compilations(compiled.served) == made
    assert "not compiled at the start" in warnings_in(caplog)[0]


def test_compiling_twice_changes_nothing(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    served = serve(model)
    assert compilations(served) == 0
    warm(served)
    assert compilations(served) == 0
    compile_decoder(served, traced_only)
    forward = model.get_decoder().layers[0].forward
    warm(served)
    made = compilations(served)
    again = serve(model)
    compile_decoder(again, traced_only)
    warm(again)
    assert model.get_decoder().layers[0].forward is forward
    assert compilations(again) == made


def test_a_machine_without_a_compiler_is_told_so(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(UnsupportedModelError, match=r"C\+\+ compiler"):
        compile_decoder(serve(tiny_model("llama")))


def test_a_compiler_that_fails_is_told_so(tiny_model: Callable[..., Any]) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        raise RuntimeError("no space left")

    served = serve(tiny_model("llama"))
    compile_decoder(served, broken)
    with pytest.raises(UnsupportedModelError, match="no space left"):
        warm(served)


@pytest.mark.slow
# Importing Inductor imports torch.utils.mkldnn, which is written in torch.jit.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.timeout(300)
def test_fused_layers_are_as_exact_as_unfused_ones(tiny_model: Callable[..., Any]) -> None:
    """In bfloat16, against the same weights in float64; a request alone is one in a batch."""
    model = tiny_model("qwen3_vl")
    exact = Run(serve(copy.deepcopy(model)))
    plain, compiled = (
        Run(served) for served in twins(model.to(torch.bfloat16), compiling.inductor)
    )
    for new in STEPS:
        true, want, got = exact.step(new), plain.step(new), compiled.step(new)
        assert (got - true).norm() <= 1.5 * (want - true).norm()
        torch.testing.assert_close(got, want, rtol=0, atol=0.1)
    alone = Run(compiled.served).step([(0, 6)])
    packed = Run(compiled.served).step([(0, 6), (1, 9)])[:6]
    torch.testing.assert_close(packed, alone, rtol=0, atol=0.1)
