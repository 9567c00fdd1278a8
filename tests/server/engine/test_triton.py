"""The Triton decode behind padded, overlapped steps, interpreted: same tokens and receipts."""

from typing import Any

import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.phases import parse_rows
from saccade_interventions.rules import RecentRule, SinkRule
from saccade_kernels import ops
from saccade_kernels.gpu import backend as gpu_backend
from saccade_kernels.gpu import decode, residual
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.warmup import dummy_plan
from saccade_server.models.family import serve
from saccade_testing import steered, tiny
from saccade_testing.engine import make_request, run

SMALL = ("rms_norm", "add_norm", "rotation", "norm_rope_store", "gate")
SmallKernels = type(
    "SmallKernels",
    (ops._Reference,),
    {name: staticmethod(getattr(gpu_backend, name)) for name in SMALL},
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")


@pytest.mark.parametrize("planned", [False, True], ids=["plain", "planned"])
def test_padding_means_to_the_kernel_what_it_means_here(
    planned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sequences at a size of four, up to three pages long, windows in half the layers."""

    def answer(**mode: bool) -> dict[str, Any]:
        config = EngineConfig(model="qwen3", max_num_seqs=8, cache_tokens=4096, **mode)
        core = EngineCore(serve(tiny.build("qwen3", dtype=torch.float32)), config)
        requests = []
        for index in range(3):
            prompt = tiny.prompt("qwen3", seed=index, text=20 + 50 * index)
            plan = None
            if planned and index != 1:
                plan = dummy_plan(core._runner.tables.shape, len(prompt.tokens), 3)
            name, sampling = str(index), {"ignore_eos": True, "logprobs": 2}
            requests.append(make_request(prompt, name, plan, 3, **sampling))
        return run(core, requests)

    wanted = answer()

    class Backend(ops._Reference):
        decode = staticmethod(decode.decode)

    monkeypatch.setattr(ops, "_backend", lambda query: Backend)
    found = answer(overlap=True, padded_decode=True)
    for name, result in found.items():
        assert result.tokens == wanted[name].tokens
        assert result.last.receipt == wanted[name].last.receipt
        for own, other in zip(result.logprobs, wanted[name].logprobs, strict=True):
            assert own.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.parametrize("changing", ["sinks of generated rows", "recent windows"])
def test_tags_that_change_under_a_running_sequence(
    changing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in both the sinks of a prompt whose last row comes alone.

    The page before the newest key's is complete; its sinks and the window are mixed into it.
    """
    generated = changing == "sinks of generated rows"

    def answer(**mode: bool) -> Any:
        prompt = tiny.prompt("llama", text=66)
        limits = {"max_batched_tokens": len(prompt.tokens) - 1, "cache_tokens": 2048}
        config = EngineConfig(model="llama", max_num_seqs=2, **limits, **mode)
        model = serve(tiny.build("llama", dtype=torch.float32))
        core = EngineCore(model, config, sink_dims=(3, 11))
        builder = PlanBuilder(core._runner.tables.shape, len(prompt.tokens), 0)
        sink, near, near_sink = (builder.new_class() for _ in range(3))
        moves = [(sink, 0, 0.5), (near, sink, 0.3), (near_sink, 0, 0.3)]
        rows = parse_rows("prompt+generated" if generated else "generated")
        builder.mass(((1, (0, 1)), (2, (2, 3))), moves, rows)
        builder.rule(SinkRule(0.9, (3, 11), (1, 2), ((0, sink),), generated=generated))
        if not generated:
            builder.rule(RecentRule(9, 60, ((0, near), (sink, near_sink))))
        sampling = {"ignore_eos": True, "logprobs": 2}
        return run(core, [make_request(prompt, "r", builder.build(), 4, **sampling)])["r"]

    wanted = answer()

    class Backend(ops._Reference):
        decode = staticmethod(decode.decode)

    monkeypatch.setattr(ops, "_backend", lambda query: Backend)
    for mode in ({}, {"overlap": True, "padded_decode": True}):
        result = answer(**mode)
        assert result.tokens == wanted.tokens
        assert result.last.receipt == wanted.last.receipt
        for own, other in zip(result.logprobs, wanted.logprobs, strict=True):
            assert own.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3_vl", "gemma3_text"])
def test_the_small_kernels_compute_what_the_plain_layers_do(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head norms, three axes, norms of updates and scaled rotations among the families."""
    wanted: dict[str, Any] = {}
    for backend in (ops._Reference, SmallKernels):
        monkeypatch.setattr(ops, "_backend", lambda tensor, backend=backend: backend)
        config = EngineConfig(model=family, max_num_seqs=2, cache_tokens=1024)
        core = EngineCore(serve(tiny.build(family, dtype=torch.float32)), config)
        prompts = [
            tiny.prompt(family, seed=index, text=5 + 4 * index, images=0) for index in (0, 1)
        ]
        sampling = {"ignore_eos": True, "logprobs": 2}
        requests = [make_request(p, str(i), None, 3, **sampling) for i, p in enumerate(prompts)]
        found = run(core, requests)
        for name, result in found.items() if wanted else ():
            assert result.tokens == wanted[name].tokens
            for own, other in zip(result.logprobs, wanted[name].logprobs, strict=True):
                assert own.logprob == pytest.approx(other.logprob, abs=1e-4)
        wanted = found


def test_a_captured_step_edits_its_sites_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of rank 1 at residuals, a map at outputs of attention, a diagonal at the MLP's, none."""
    base = {"method": "steering", "rows": "last+generated"}
    diagonal = {"op": "affine", "artifact": steered.DIAGONAL.digest, "site": "mlp_output"}
    entries = [
        [steered.steering("add, same norm", "last+generated")],
        [{**steered.MAP, **base, "site": "attention_output"}, {**base, **diagonal}],
        [],
    ]

    def answer(**mode: bool) -> dict[str, Any]:
        config = EngineConfig(model="llama", max_num_seqs=8, cache_tokens=4096, **mode)
        core = EngineCore(serve(tiny.build("llama", dtype=torch.float32)), config)
        requests = []
        for index, made in enumerate(entries):
            prompt = tiny.prompt("llama", seed=index, text=20)
            plan = steered.plan_for(core, prompt, made) if made else None
            sampling = {"ignore_eos": True, "logprobs": 2}
            requests.append(make_request(prompt, str(index), plan, 3, **sampling))
        return run(core, requests)

    wanted = answer()

    class Backend(ops._Reference):
        edit_residual = staticmethod(residual.edit_residual)

    monkeypatch.setattr(ops, "_backend", lambda query: Backend)
    found = answer(overlap=True, padded_decode=True)
    for name, result in found.items():
        assert result.tokens == wanted[name].tokens
        for own, other in zip(result.logprobs, wanted[name].logprobs, strict=True):
            assert own.logprob == pytest.approx(other.logprob, abs=1e-4)
