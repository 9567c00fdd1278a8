"""Every kind of trace beside every method: all of it comes, or a refusal says why."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from saccade_server.config import engine_config
from saccade_server.demo import sample_path
from saccade_server.inprocess import open_server
from saccade_server.oneshot import RequestRefused, ask

TOKENS = 2
KINDS: dict[str, Any] = {
    "masses": {"rows": "all", "reduce": []},
    "attention": {"layers": [2], "keys": "all"},
    "heatmaps": {"sinks": "drop"},
    "columns": True,
    "projections": {"directions": [[1.0] * 192], "site": "mlp_output", "rows": "all"},
    "logit_lens": True,
    "entropy": {"rows": "all"},
    "token_shares": {"tokens": [[5]]},
    "vhd": True,
    "saliency": True,
    "sinks": True,
}
REFUSED = {"adaptvis": "trace.vhd"}
"""Methods that something cannot be read beside, and what that is."""


async def _answers() -> dict[str, Any]:
    """One answer under each method's example, or its refusal."""
    config = engine_config(None, enforce_eager=True, cache_tokens=8192)
    async with open_server(config, "demo") as client:
        found = {}
        for method in (await client.get("/v1/interventions")).json()["data"]:
            if not method["supported"] or method["needs_artifact"]:
                continue
            about = (await client.get(f"/v1/interventions/{method['id']}")).json()
            entries = [
                about["example"] | ({"highlight": ["image"]} if method["id"] == "pasta" else {})
            ]
            sampling = {"temperature": 0, "max_tokens": TOKENS, "trace": KINDS}
            images = [sample_path("absent-1")]
            try:
                answer = await ask(client, "demo", "Describe the image.", images, entries, sampling)
                found[method["id"]] = answer["choices"][0]["trace"]
            except RequestRefused as refusal:
                found[method["id"]] = refusal
        return found


@pytest.mark.slow
def test_traces_beside_every_method() -> None:
    found = asyncio.run(_answers())
    assert len(found) > 10
    for method, trace in found.items():
        if method in REFUSED:
            assert isinstance(trace, RequestRefused), method
            assert trace.param == REFUSED[method]
            continue
        assert not isinstance(trace, RequestRefused), (method, trace.message, trace.param)
        assert {name.partition(".")[0] for name in trace["arrays"]} == KINDS.keys() | {"t_vhd"}
        for name, array in trace["arrays"].items():
            if array["axes"][:1] == ["row"] and "row" in array["axes"]:
                assert array["shape"][0] in (TOKENS, trace["prompt_tokens"] + TOKENS - 1), name
