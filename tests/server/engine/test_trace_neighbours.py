"""A trace changes no bit: of its own answer, of its receipt, or of edited requests beside it."""

from typing import Any

import pytest
from msgspec.structs import replace

from saccade_server.engine.traces.data import (
    AttentionReading,
    EntropyReading,
    LensReading,
    SinkReading,
    Trace,
)
from saccade_testing import tiny
from saccade_testing.engine import REGISTRY, ask, core_with, run

SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {"prefix_caching": False},
    "chunks": {"max_batched_tokens": 80},
    "as on a GPU": {"padded_decode": True, "overlap": True},
}
ENTRIES: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "pai": [{"method": "pai", "alpha": 0.5, "layers": [0, 1, 2, 3]}],
    "var": [{"method": "var", "tau": 1.0, "sink_dims": [3, 11], "min_visual_mass": 0.02}],
    "act": [{"method": "act", "beta": 0.4, "theta": 0.1, "heads": {"1": [0, 3], "2": [1]}}],
    "locore": [{"method": "locore"}],
    "vhr": [{"method": "vhr"}],
    "vcd": [{"method": "vcd"}],
    "sgrs": [{"method": "sgrs"}],
}
WHOLE: dict[str, Any] = {"rows": (0, 1000), "layers": (0, 1, 2, 3), "heads": (0, 1, 2, 3)}
TRACE = Trace(
    (
        EntropyReading(name="entropy", rows=(0, 1000)),
        LensReading(name="lens", rows=(0, 1000), layers=(1, 4), top=2),
        AttentionReading(name="groups", keys=(((3, 9),),), recent=3, sinks="group", **WHOLE),
        AttentionReading(name="keys", keys=(((0, 40),),), each=True, **WHOLE),
        AttentionReading(name="sums", over=frozenset({"row", "head"}), **WHOLE),
        SinkReading(name="sinks", rows=(0, 1000), layers=(0, 2)),
    )
)


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_bit_changes(setting: str) -> None:
    """Every request of a crowd, of which all, one or none has a trace."""

    def crowd(traced: set[str]) -> dict[str, Any]:
        core = core_with("llava", max_num_seqs=24, **SETTINGS[setting])
        requests = []
        for seed, (name, entries) in enumerate(ENTRIES.items()):
            prompt = tiny.prompt("llava", seed=seed)
            methods = REGISTRY.parse(entries)
            request = ask(prompt, methods, name, 6, logprobs=2, temperature=0.7, seed=seed)
            requests.append(replace(request, trace=TRACE if name in traced else None))
        results = run(core, requests)
        assert all(bool(results[name].pieces) == (name in traced) for name in ENTRIES)
        told = {}
        for name, result in results.items():
            assert result.last is not None
            assert result.last.error is None, (name, result.last.error)
            told[name] = (result.tokens, result.logprobs, result.last.receipt)
        return told

    wanted = crowd(set())
    assert crowd({"plain"}) == wanted
    assert crowd({"var", "sgrs"}) == wanted
    assert crowd(set(ENTRIES)) == wanted
