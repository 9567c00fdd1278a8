"""Every method answers the same whatever is read of it, and all of it can be read."""

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from saccade_server.engine.request import Array, GenerateRequest
from saccade_server.engine.traces.data import (
    AnyReading,
    AttentionReading,
    DivergenceReading,
    EntropyReading,
    LensReading,
    ProjectionReading,
    SaliencyReading,
)
from saccade_testing import catalogue, tiny
from saccade_testing.engine import REGISTRY, ask, core_with, run
from saccade_testing.readings import SETTINGS, all_rows, answer_rows, compared, with_trace

TOKENS = 6
LAYERS, HEADS = (0, 1, 2, 3), (0, 1, 2, 3)
VECTORS = Array.pack(np.random.default_rng(2).normal(size=(2, 64)).astype(np.float32))
PROMPT = tiny.prompt("llava", images=2, seed=1)
LENGTH = len(PROMPT.tokens)
METHODS = {
    name: entries
    for name, entries in catalogue.WITH_IMAGE.items()
    if not any(entry.get("sink_dims") for entry in entries)
}


def request_for(name: str) -> GenerateRequest:
    methods = REGISTRY.parse(list(METHODS[name]))
    more = {"facts": catalogue.FACTS, "artifacts": catalogue.STORE.get, "logprobs": 2}
    return ask(PROMPT, methods, name, TOKENS, **more)


def traced(request: GenerateRequest) -> GenerateRequest:
    every, answer = all_rows(PROMPT, TOKENS), answer_rows(PROMPT, TOKENS)
    readings: list[AnyReading] = [
        EntropyReading(name="entropy", rows=every, layers=(0, 4)),
        LensReading(name="lens", rows=answer, layers=(2, 4), top=3),
        SaliencyReading(
            name="saliency", rows=answer, layers=(1, 3), heads=HEADS, keys=((0, every[1]),)
        ),
        AttentionReading(name="shares", rows=every, layers=LAYERS, heads=HEADS, recent=2),
        *[
            ProjectionReading(name=site, rows=every, layers=LAYERS, site=site, vectors=VECTORS)
            for site in ("residual", "attention_output", "mlp_output")
        ],
    ]
    twice = request.plan is not None and request.plan.needs.last_row_twice
    vhd = () if twice else (DivergenceReading(name="vhd", rows=answer, layers=LAYERS),)
    return with_trace(compared(request, PROMPT, vhd), *readings, *vhd)


def receipt_of(result: Any) -> Any:
    """Without what is measured, whose last digits depend on who is in the step."""
    receipt = result.last.receipt
    return receipt and replace(receipt, findings=())


SHAPES: dict[str, tuple[int, ...]] = {
    "entropy": (LENGTH + TOKENS - 1, 2),
    "lens.logprobs": (TOKENS, 2, 3),
    "saliency": (TOKENS, 2, 4, LENGTH + TOKENS - 1),
    "shares": (LENGTH + TOKENS - 1, 4, 4, 2),
    "residual": (LENGTH + TOKENS - 1, 4, 2),
    "attention_output": (LENGTH + TOKENS - 1, 4, 2),
    "mlp_output": (LENGTH + TOKENS - 1, 4, 2),
    "vhd": (TOKENS, 4, 4),
}


@pytest.mark.parametrize("setting", ["chunks", "as on a GPU"])
def test_every_method(setting: str) -> None:
    settings: dict[str, Any] = {"max_num_seqs": 12, "cache_tokens": 4096, **SETTINGS[setting]}
    settings["max_batched_tokens"] = 512 if setting != "chunks" else 200  # prompts in one step
    requests = [request_for(name) for name in METHODS]
    plain = run(core_with("llava", **settings), requests)
    found = run(core_with("llava", **settings), [traced(request) for request in requests])
    for name, result in found.items():
        assert result.last is not None
        assert result.last.error is None, name
        assert result.tokens == plain[name].tokens, name
        for own, other in zip(result.logprobs, plain[name].logprobs, strict=True):
            assert abs(own.logprob - other.logprob) < 1e-6, name
        for array, shape in SHAPES.items():
            if array == "vhd" and array not in result.trace:
                assert name.partition(" ")[0] == "adaptvis" or "adaptvis" in name
                continue
            values = result.trace[array]
            assert values.shape == shape, (name, array)
            assert np.isfinite(values).all(), (name, array)
        shares = result.trace["shares"].sum(-1)
        assert shares.max() < 4, name
        assert receipt_of(result) == receipt_of(plain[name]), name
