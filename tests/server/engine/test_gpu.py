"""What only a GPU can prove: captured steps, copies that nobody waits for, overlap for real."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import Gate
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_kernels.controls import ControlShape
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.decode import StepVariant, padded_sizes
from saccade_server.engine.local import LocalEngine
from saccade_server.engine.wants import Search
from saccade_server.models.family import serve
from saccade_server.models.residual import Reach
from saccade_testing import held, tiny
from saccade_testing.engine import core_with, make_request, run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture
def core_on_gpu() -> Callable[..., EngineCore]:
    """``core_on_gpu(family, **config)``: float32, so that tokens can be compared."""

    def make(family: str = "llama", **config: Any) -> EngineCore:
        model = serve(tiny.build(family, dtype=torch.float32).to("cuda"))
        settings = {"max_num_seqs": 16, "cache_tokens": 8192, "device": "cuda", **config}
        made = EngineConfig(model=family, **settings)
        return EngineCore(model, made, vocabulary=held.vocabulary())

    return make


def plan(prompt: Any, strength: float = 1.0) -> Plan:
    """Edits scores, masses and heads, and looks for sinks in the prompt."""
    question = max((i.start + i.length for i in prompt.images), default=0)
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), question)
    tag, sink = builder.tag([(2, 6)]), builder.new_class()
    sites = tuple((layer, (0, 1, 2, 3)) for layer in (1, 2))
    rows = parse_rows("question+generated")
    builder.score(sites, [tag], rows, bias=strength)
    builder.mass(sites, [(tag, sink, 0.5)], rows, [Gate((0.0, 1.0, 1.0), 0.01)])
    builder.head(sites, rows, 1 + strength / 4)
    builder.rule(SinkRule(0.8, (3, 11), (1, 2), ((tag, sink), (0, sink))))
    return builder.build()


SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "seed": 3},
    {"temperature": 0.9, "top_p": 0.8, "top_k": 20, "seed": 4},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "logprobs": 2},
]


def workload(family: str, images: int = 1) -> list[Any]:
    """Plain and planned requests with every kind of sampling; some end at a stop token."""
    made = []
    for index in range(3):
        prompt = tiny.prompt(family, images=images, seed=index, text=20 + 25 * index)
        for number, sampling in enumerate(SAMPLING):
            chosen = plan(prompt, 0.5 + index) if number % 2 else None
            stops = {"stop_token_ids": tuple(range(10, 97, 9)), **sampling}
            made.append(make_request(prompt, f"{index}-{number}", chosen, 20, **stops))
            request = make_request(prompt, f"{index}-{number}-held", chosen, 20, **sampling)
            made.append(held.held(request, r"(ab|12|[c-h]{2}|true){2,4}\.[0-9]{2}"))
    return made


def tokens_of(results: dict[str, Any]) -> dict[str, list[int]]:
    return {name: result.tokens for name, result in results.items()}


@contextmanager
def sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graphs_eager_and_the_cpu_agree(family: str, core_on_gpu: Any) -> None:
    requests = workload(family)
    captured = core_on_gpu(family)
    assert captured.captured is not None
    found = run(captured, requests)
    eager = run(core_on_gpu(family, enforce_eager=True), requests)
    apart = run(core_on_gpu(family, overlap=False), requests)
    assert tokens_of(found) == tokens_of(eager)
    assert tokens_of(found) == tokens_of(apart)
    on_the_host = core_with(family, held.vocabulary())
    assert tokens_of(found) == tokens_of(run(on_the_host, requests))
    assert captured.stats().cache_usage == 0


def held_by_others() -> int:
    """Bytes of the GPU that are not this process's tensors: contexts, other programs."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_the_cache_takes_its_share_and_no_more(core_on_gpu: Any, share: float) -> None:
    """What is left after it is for graphs, libraries and other programs.

    The share counts what others hold, which may change meanwhile: this process knows by how much.
    """
    gc.collect()
    torch.cuda.empty_cache()
    total, others = torch.cuda.mem_get_info()[1], held_by_others()
    utilization = share + others / total
    if utilization > 0.95:
        pytest.skip("other programs hold the GPU's memory")
    settings = {"cache_tokens": None, "gpu_memory_utilization": utilization}
    core = core_on_gpu(enforce_eager=True, **settings)
    changed = abs(held_by_others() - others)
    allocated = torch.cuda.memory_allocated()
    assert 0.8 * share * total - changed < allocated < share * total + changed
    assert core.info.cache_tokens > 10_000


def test_what_was_captured(core_on_gpu: Any) -> None:
    core = core_on_gpu("llama")
    steps = [found for found in core.captured.variants if isinstance(found, StepVariant)]
    stages = core.captured.variants[: -len(steps)]
    draws = [found for found in stages if found.stage.endswith("draw")]
    assert draws[0] == ("filtered draw", 16)
    assert steps[0] == (16, 8, Reach.EVERYWHERE, Search.PER_HEAD_CLASSES)
    sizes = {found.size for found in steps}
    assert sizes == {found.size for found in draws} == set(padded_sizes(16))
    assert core.captured.seconds > 0
    assert core_on_gpu("llama", enforce_eager=True).captured is None


def test_capturing_reads_nothing_that_lies_in_the_block(core_on_gpu: Any) -> None:
    """An index out of bounds on a GPU ends its process; test_leftovers.py finds it elsewhere."""
    core = core_on_gpu("llava")
    core._runner._decoder._uploaded.random_(0, 256)
    assert core._runner.capture().variants == core.captured.variants
    requests = workload("llava")
    eager = core_on_gpu("llava", enforce_eager=True)
    assert tokens_of(run(core, requests)) == tokens_of(run(eager, requests))


def test_a_plan_that_comes_after_the_capture_is_followed(core_on_gpu: Any) -> None:
    """Tables are read on the device, again at every replay."""
    core, eager = core_on_gpu("llava"), core_on_gpu("llava", enforce_eager=True)
    prompt = tiny.prompt("llava", images=1, text=30)
    for strength in (0.1, 2.0, -1.0):
        request = make_request(prompt, "r", plan(prompt, strength), 12, ignore_eos=True)
        found, wanted = run(core, [request])["r"], run(eager, [request])["r"]
        assert found.tokens == wanted.tokens
        assert found.last.receipt.moved
        assert found.last.receipt == wanted.last.receipt


@pytest.mark.parametrize("enforce_eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3_vl"])
def test_no_launch_waits_for_the_device(
    family: str, enforce_eager: bool, core_on_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefills, decodes and mixed steps; images apart, whose encoders read their grids."""
    requests = workload(family, images=0)
    core = core_on_gpu(family, enforce_eager=enforce_eager, max_batched_tokens=64)
    wanted = tokens_of(run(core, requests))  # compiles what is compiled at first use
    launch, schedule = core._runner.launch, core._scheduler.schedule

    def strictly(function: Any) -> Any:
        def call(*args: Any) -> Any:
            with sync_is_an_error():
                return function(*args)

        return call

    monkeypatch.setattr(core._runner, "launch", strictly(launch))
    monkeypatch.setattr(core._scheduler, "schedule", strictly(schedule))
    assert tokens_of(run(core, requests)) == wanted


def test_launches_return_before_the_device_is_done(
    core_on_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_on_gpu("llama")
    core.submit(make_request(tiny.prompt("llama"), "r", None, 8, ignore_eos=True))
    core.step()
    torch.cuda._sleep(200_000_000)  # cycles: about 0.1 s
    core._runner.launch(core._scheduler.schedule())
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


def test_an_abort_in_flight_hands_pages_and_rows_on(core_on_gpu: Any) -> None:
    prompt, other = (tiny.prompt("llava", images=1, seed=s, text=70 - 5 * s) for s in (0, 1))
    request = make_request(other, "r", plan(other), 12, ignore_eos=True)
    wanted = run(core_on_gpu("llava"), [request])["r"]
    core = core_on_gpu("llava", cache_tokens=192, max_programs=4)
    for steps in range(1, 6):
        core.submit(make_request(prompt, "r", plan(prompt, 2.0), 50, ignore_eos=True))
        for _ in range(steps):
            core.step()
        core.abort("r")
        found = run(core, [request])["r"]
        assert found.tokens == wanted.tokens
        assert found.last.receipt.rows == wanted.last.receipt.rows


def test_another_thread_may_drive_the_engine(core_on_gpu: Any) -> None:
    requests = workload("llava")
    wanted = tokens_of(run(core_on_gpu("llava"), requests))

    async def answer(engine: LocalEngine, request: Any) -> list[int]:
        return [token async for output in engine.submit(request) for token in output.tokens]

    async def main() -> None:
        engine = LocalEngine(core_on_gpu("llava"))
        found = await asyncio.gather(*(answer(engine, request) for request in requests))
        assert dict(zip((r.request_id for r in requests), found, strict=True)) == wanted
        await engine.close()

    asyncio.run(main())


def test_bfloat16_graphs_equal_eager_bit_for_bit() -> None:
    """At a batch of its own size nothing is padded, and every kernel is the same."""
    requests = [make_request(tiny.prompt("llama", text=70), "r", None, 12, logprobs=3)]
    found = []
    for enforce_eager in (False, True):
        model = serve(tiny.build("llama", dtype=torch.bfloat16).to("cuda"))
        config = EngineConfig(
            model="m", device="cuda", cache_tokens=4096, enforce_eager=enforce_eager
        )
        found.append(run(EngineCore(model, config), requests)["r"].logprobs)
    assert found[0] == found[1]
