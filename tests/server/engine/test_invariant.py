"""``batch_invariant`` engines over the demo model: any chunks, preemption, cached pages."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from saccade_interventions.registry import Registry
from saccade_interventions.rules import MeasuredGains
from saccade_kernels import fixed_tiles
from saccade_server.demo import model_path
from saccade_server.engine import invariance
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.features import FeatureCache
from saccade_server.engine.request import FinishReason, GenerateRequest
from saccade_server.engine.rules import rounding
from saccade_server.models.base import ServedModel
from saccade_server.models.family import load_model
from saccade_server.models.folder import UnsupportedModelError
from saccade_testing import tiny
from saccade_testing.engine import Result, ask, core_with, make_request, plan_for, run

TYPES = (torch.float32, torch.bfloat16)
METHODS: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "gain": [{"method": "head_scale", "gain": 1.5, "layers": [1]}],
    "scores": [{"method": "look_at", "regions": [{"tokens": [2, 6]}], "strength": 3.0}],
    "masses": [{"method": "locore", "beta": 3.0, "layers": [0, 1, 2, 3]}],
    "early": [{"method": "dola", "layers": [0, 1, 3]}],
}
LENGTHS = (62, 126)


@cache
def model(dtype: torch.dtype) -> ServedModel:
    return load_model(str(model_path()), dtype=dtype, device=torch.device("cpu"))


def core(dtype: torch.dtype, **config: Any) -> EngineCore:
    limits = {"max_num_seqs": 16, "cache_tokens": 8192, "batch_invariant": True, **config}
    return EngineCore(model(dtype), EngineConfig(model="demo", **limits))


def requests(dtype: torch.dtype) -> list[GenerateRequest]:
    """Every method over prompts whose answers begin another page: half of them sample."""
    some, rng, made = core(dtype), np.random.default_rng(5), []
    for length in LENGTHS:
        prompt = tiny.TinyPrompt(tuple(rng.integers(10, 440, length).tolist()))
        for number, (kind, entries) in enumerate(METHODS.items()):
            sampling: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95} if number % 2 else {}
            sampling |= {"seed": number, "logprobs": 2, "ignore_eos": True}
            plan = plan_for(some, prompt, entries)
            made.append(make_request(prompt, f"{length} {kind}", plan, 4, **sampling))
    return made


def said(results: dict[str, Result]) -> dict[str, Any]:
    return {name: (result.tokens, result.logprobs) for name, result in results.items()}


@cache
def alone(dtype: torch.dtype) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for request in requests(dtype):
        found |= said(run(core(dtype, prefix_caching=False), [request]))
    return found


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
def test_chunks_and_neighbours_change_no_bit(dtype: torch.dtype, chunk: int) -> None:
    engine = core(dtype, max_batched_tokens=chunk, max_num_seqs=min(chunk, 16))
    assert said(run(engine, requests(dtype))) == alone(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_preemption_changes_no_bit(dtype: torch.dtype) -> None:
    engine = core(dtype, cache_tokens=64 * 5, max_batched_tokens=200)
    assert said(run(engine, requests(dtype))) == alone(dtype)
    assert engine.stats().preemptions


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cached_pages_change_no_bit(dtype: torch.dtype) -> None:
    engine = core(dtype, max_batched_tokens=30)
    for _ in range(2):
        assert said(run(engine, requests(dtype))) == alone(dtype)
    assert engine.stats().prefix_hits


def test_without_the_promise_bits_differ() -> None:
    """Or the tests above would show nothing."""
    usual = core(torch.float32, batch_invariant=False)
    one = requests(torch.float32)[-1]
    by_itself = run(core(torch.float32, batch_invariant=False), [one])
    assert said(run(usual, requests(torch.float32)))[one.request_id] != said(by_itself)


def test_images_are_encoded_one_by_one() -> None:
    calls = []

    class Counted:
        def encode_images(self, images: list[Any]) -> list[Any]:
            calls.append(len(images))
            return served.encode_images(images)

    served: Any = core_with("llava")._runner.model
    prompt = tiny.prompt("llava", images=2, seed=3)
    images = make_request(prompt).images
    for one_by_one in (False, True):
        FeatureCache(Counted(), 1 << 20, one_by_one).get(images)  # type: ignore[arg-type]
    assert calls == [2, 1, 1]


def test_the_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for invariant in (True, False):
        asked: set[int] = set()
        engine = core(torch.float32, batch_invariant=invariant)
        monkeypatch.setattr(torch, "set_num_threads", asked.add)
        run(engine, requests(torch.float32)[:1])
        assert (asked == {4}) == invariant


@pytest.mark.parametrize(("dtype", "gain", "taken"), [
    ("bfloat16", 1.5, False), ("bfloat16", 2.0, True), ("bfloat16", 0.25, True),
    ("float16", 3.0, False), ("float32", 1.5, True),
])  # fmt: skip
def test_measured_gains_that_round_twice_are_refused(dtype: str, gain: float, taken: bool) -> None:
    entry = {"method": "vhr", "gain": gain, "rows": "last+generated"}
    prompt = tiny.prompt("llava", images=1, seed=3)
    request = ask(prompt, Registry.discover().parse([entry]))
    plans = [request.plan]
    assert request.plan is not None
    assert request.plan.rule(MeasuredGains) is not None
    info = replace(core_with("llava").info, dtype=dtype, batch_invariant=True)
    reason = rounding.why_not_invariant(plans, info)  # type: ignore[arg-type]
    assert (reason is None) == taken
    assert taken or f"{gain:g} is rounded" in str(reason)
    usual = replace(info, batch_invariant=False)
    assert rounding.why_not_invariant(plans, usual) is None  # type: ignore[arg-type]


def test_the_engine_refuses_such_gains_before_it_runs_anything() -> None:
    engine = core_with("llava", batch_invariant=True)
    engine.info = replace(engine.info, dtype="bfloat16")
    entry = {"method": "vhr", "gain": 1.5, "rows": "last+generated"}
    prompt = tiny.prompt("llava", images=1, seed=3)
    output = engine.submit(ask(prompt, Registry.discover().parse([entry])))
    assert output is not None
    assert output.finish_reason is FinishReason.ERROR
    assert "power of two" in str(output.error)


def test_a_machine_whose_library_does_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    served = model(torch.float32)
    invariance.check_machine(served)
    usual = fixed_tiles.bmm_keys

    def heeds_company(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        found = usual(rows, columns)
        return found if columns.shape[2] == fixed_tiles.PAGE else found * (1 + 1e-6)

    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"), vocab_size=32064, head_dim=64)
    invariance.check_machine(on_gpu)
    on_gpu.vocab_size = 32001
    with pytest.raises(UnsupportedModelError, match="a vocabulary of 32001 tokens"):
        invariance.check_machine(on_gpu)
    monkeypatch.setattr(invariance, "bmm_keys", heeds_company)
    with pytest.raises(UnsupportedModelError, match="cannot be kept on this machine"):
        invariance.check_machine(served)
