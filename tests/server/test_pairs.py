"""Every two methods in one request, all such requests in one batch, on the demo model."""

import asyncio
import base64
import itertools
from typing import Any

import httpx2
import pytest

from saccade_interventions.artifacts import read_artifact
from saccade_interventions.registry import Registry
from saccade_server.api.app import create_app
from saccade_server.api.settings import ApiSettings
from saccade_server.config import engine_config
from saccade_server.demo import sample_path
from saccade_server.engine.load import load_core
from saccade_server.engine.local import LocalEngine
from saccade_server.models.prompt import PromptProcessor

PLAIN = ("", "")
NEIGHBOURS = 6


def message() -> dict[str, Any]:
    image = base64.b64encode(sample_path("absent-1").read_bytes()).decode()
    url = {"url": f"data:image/png;base64,{image}"}
    text = {"type": "text", "text": "Describe the image."}
    return {"role": "user", "content": [{"type": "image_url", "image_url": url}, text]}


async def ask(client: httpx2.AsyncClient, entries: list[dict[str, Any]]) -> httpx2.Response:
    body = {
        "model": "m",
        "messages": [message()],
        "interventions": entries,
        "temperature": 0,
        "max_tokens": 4,
        "ignore_eos": True,
    }
    return await client.post("/v1/chat/completions", json=body)


def text(answer: httpx2.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("overlap", [False, True], ids=["one step at a time", "one step ahead"])
def test_every_pair_runs_or_says_why_not(overlap: bool) -> None:
    """All pairs that compose really do something, together; a plain neighbour notices nothing."""

    async def main() -> None:
        config = engine_config(
            device="cpu", cache_tokens=65536, overlap=overlap, padded_decode=overlap
        )
        engine = LocalEngine(load_core(config))
        prompts = PromptProcessor.load(config.model)
        app = create_app(engine, prompts, Registry.discover(), ApiSettings("m", access_log=False))
        try:
            async with httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app=app), base_url="http://localhost", timeout=None
            ) as client:
                await compare(client, app.state.services)
        finally:
            app.state.services.close()
            await engine.close()

    asyncio.run(main())


async def compare(client: httpx2.AsyncClient, services: Any) -> None:
    entries: dict[str, list[dict[str, Any]]] = {"": []}
    for name, kind in services.registry.methods.items():
        probe = kind.probe(services.facts)
        entries[name] = [probe.entry]
        if probe.artifact is not None:
            services.artifacts.put(read_artifact(probe.artifact), probe.artifact)
    labels = list(itertools.combinations_with_replacement(list(entries)[1:], 2))
    for place in range(0, len(labels), len(labels) // NEIGHBOURS):
        labels.insert(place, PLAIN)
    alone = text(await ask(client, []))
    answers = await asyncio.gather(
        *(ask(client, [*entries[one], *entries[other]]) for one, other in labels)
    )
    conflicts = []
    for label, answer in zip(labels, answers, strict=True):
        if answer.status_code == 400:
            assert answer.json()["error"]["code"] == "intervention_conflict", answer.text
            conflicts.append(label)
            continue
        assert answer.status_code == 200, f"{label}: {answer.text}"
        if label == PLAIN:
            assert text(answer) == alone
            continue
        done = [item["status"] for item in answer.json()["interventions_applied"]]
        assert done[0] == "applied", label
        assert done[1] == NOTHING_LEFT.get(label, "applied"), label
    assert ("vcd", "vcd") in conflicts
    assert len(conflicts) < len(labels) / 4
    assert services.noops.total() == 0


NOTHING_LEFT = dict.fromkeys(
    [("head_ablation", "vhr"), ("head_ablation", "sgrs")],
    "no_effect",
)
"""Heads whose outputs are all zero depend neither on the image nor on earlier tokens."""
