"""The Triton decode behind padded, overlapped steps, interpreted: same tokens and receipts."""

from typing import Any

import pytest
import torch

from saccade_kernels import ops
from saccade_kernels.gpu import decode
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.warmup import dummy_plan
from saccade_server.models.family import serve

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")


@pytest.mark.parametrize("planned", [False, True], ids=["plain", "planned"])
def test_padding_means_to_the_kernel_what_it_means_here(
    planned: bool,
    tiny: Any,
    tiny_model: Any,
    make_request: Any,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three sequences at a size of four, up to three pages long, windows in half the layers."""

    def answer(**mode: bool) -> dict[str, Any]:
        config = EngineConfig(model="qwen3", max_num_seqs=8, cache_tokens=4096, **mode)
        core = EngineCore(serve(tiny_model("qwen3", dtype=torch.float32)), config)
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
