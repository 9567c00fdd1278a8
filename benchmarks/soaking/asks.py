"""The kinds of requests of a soak: every method, and every way in which a client goes wrong.

Each is a coroutine that asks once. It returns what came of it, one word; what should not have
happened it raises.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from saccade_interventions.artifacts import write_artifact

CHAT, SCORE = "/v1/chat/completions", "/v1/score"
QUESTIONS = ("Describe the image.", "Is there a red circle?", "How many shapes are there?")
TRACES: tuple[dict[str, Any], ...] = (
    {"masses": True},
    {"entropy": True, "logit_lens": True, "delivery": "link"},
    {"heatmaps": {"rows": "all"}},
    {"saliency": True},
)
LOOKED = ("/v1/models", "/v1/interventions", "/load", "/ready", "/v1/artifacts", "/metrics")
PICTURES = 16
SEEDS = 4
"""Of draws, and of the noise that some methods put on pictures."""
BUSY = (503, 429)


class Unexpected(AssertionError):
    """An answer that should not have come."""


@dataclass
class Asker:
    """Draws requests from ``random``; ``methods`` are those that the server lists."""

    client: httpx2.AsyncClient
    methods: list[dict[str, Any]]
    hidden: int
    fingerprint: str
    deletes: bool
    random: random.Random
    uploaded: list[str] = field(default_factory=list)

    async def ask(self) -> tuple[str, str]:
        """The kind that was drawn, and what came of it."""
        kinds, weights = zip(*KINDS.items(), strict=True)
        (kind,) = self.random.choices(kinds, weights)
        try:
            return kind.__name__, await kind(self)
        except httpx2.HTTPError as error:
            raise Unexpected(f"{kind.__name__}: {error!r}") from error

    def body(self, **more: Any) -> dict[str, Any]:
        """A chat under one method or two, or none."""
        chosen = self.random.sample(self.methods, self.random.choice((0, 1, 1, 1, 2)))
        parts = [self.picture(), {"type": "text", "text": self.random.choice(QUESTIONS)}]
        return {
            "messages": [{"role": "user", "content": parts}],
            "interventions": [method["example"] for method in chosen],
            "max_tokens": self.random.randint(1, 24),
            "temperature": self.random.choice((0, 1)),
            "seed": self.random.randrange(SEEDS),
            "priority": self.random.choice((-1, 0, 1)),
            **more,
        }

    def picture(self) -> dict[str, Any]:
        """One of few, so that what is kept of pictures is soon all there."""
        index = self.random.randrange(PICTURES)
        file = io.BytesIO()
        shade = (index * 16, 255 - index * 16, 128)
        Image.new("RGB", (64, 64), shade).save(file, "JPEG" if index % 2 else "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": url}}

    async def post(self, path: str, body: dict[str, Any], *allowed: int) -> httpx2.Response:
        answer = await self.client.post(path, json=body)
        if answer.status_code not in (*allowed, *BUSY):
            raise Unexpected(f"{path} answered {answer.status_code}: {answer.text[:500]}")
        return answer


def outcome(answer: httpx2.Response) -> str:
    if answer.status_code == 200:
        return "answered"
    if answer.status_code in BUSY:
        return "busy"
    return str(answer.json()["error"]["code"])


CONFLICT = 400
"""Two methods that were drawn may not go together, or one not with what is read beside it."""


async def plain(asker: Asker) -> str:
    more = asker.random.choice(
        ({}, {"n": 2}, {"logprobs": True, "top_logprobs": 3}, {"top_p": 0.5})
    )
    return outcome(await asker.post(CHAT, asker.body(**more), 200, CONFLICT))


async def streamed(asker: Asker) -> str:
    async with asker.client.stream("POST", CHAT, json=asker.body(stream=True)) as answer:
        text = (await answer.aread()).decode()
    if answer.status_code == 200 and not text.endswith("data: [DONE]\n\n"):
        raise Unexpected(f"a stream ended with {text[-300:]}")
    return outcome(answer)


async def traced(asker: Asker) -> str:
    answer = await asker.post(CHAT, asker.body(trace=asker.random.choice(TRACES)), 200, CONFLICT)
    if answer.status_code == 200:
        link = answer.json()["choices"][0]["trace"].get("link")
        if link and (await asker.client.get(link)).status_code not in (200, 404):
            raise Unexpected(f"{link} is not served")
    return outcome(answer)


async def detected(asker: Asker) -> str:
    more = {"detectors": [{"name": "svar"}], "interventions": []}
    return outcome(await asker.post(CHAT, asker.body(**more), 200, CONFLICT))


async def scored(asker: Asker) -> str:
    body = {"prompt": "There is a red", "continuations": [" circle", " square"]}
    return outcome(await asker.post(SCORE, body, 200))


async def left_in_the_middle(asker: Asker) -> str:
    body = asker.body(stream=True, max_tokens=200, ignore_eos=True)
    async with asker.client.stream("POST", CHAT, json=body) as answer:
        async for _ in answer.aiter_raw():
            if asker.random.random() < 0.3:
                break
    return "left"


async def left_before_the_answer(asker: Asker) -> str:
    asked = asyncio.create_task(asker.client.post(CHAT, json=asker.body(n=4, max_tokens=100)))
    await asyncio.sleep(asker.random.random() * 0.2)
    asked.cancel()
    await asyncio.wait([asked])
    return "left"


async def half_a_body(asker: Asker) -> str:
    url = asker.client.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    data = json.dumps(asker.body()).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: {url.host}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data[: len(data) // 2])
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    return "left"


async def read_slowly(asker: Asker) -> str:
    """A stream read byte by byte from a small window, and left in the end as often as not."""
    url = asker.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=256)
    body = asker.body(stream=True, max_tokens=200, ignore_eos=True, logprobs=True, top_logprobs=20)
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: {url.host}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    for _ in range(asker.random.randint(5, 30)):
        await reader.read(64)
        await asyncio.sleep(0.05)
    if asker.random.random() < 0.5:
        while await asyncio.wait_for(reader.read(2**16), 60):
            if reader.at_eof() or asker.random.random() < 0.02:
                break
    writer.close()
    return "left"


async def refused(asker: Asker) -> str:
    """Something is wrong with it, each time something else."""
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    wrong: list[dict[str, Any]] = [
        {"temperature": -1},
        {"interventions": [{"method": "no such method"}]},
        {"interventions": [{"method": "pai", "alpha": 99}]},
        {"model": "another"},
        {"max_tokens": 10**6},
        {"messages": [{"role": "user", "content": [broken]}]},
        {"messages": []},
        {"trace": {"nothing": True}},
    ]
    return outcome(await asker.post(CHAT, asker.body(**asker.random.choice(wrong)), 400, 404))


async def no_json(asker: Asker) -> str:
    data = asker.random.choice((b"", b"{", b"[" * 10**5, b'{"a": NaN}', b"\xff" * 100))
    kind = {"content-type": "application/json"}
    answer = await asker.client.post(CHAT, content=data, headers=kind)
    if answer.status_code != 400:
        raise Unexpected(f"{data[:20]!r} was answered with {answer.status_code}")
    return outcome(answer)


async def artifact(asker: Asker) -> str:
    """One that is new is kept, steered with and, where the server offers it, deleted."""
    numbers = np.random.default_rng(asker.random.randrange(2**31))
    vector = numbers.normal(size=(1, asker.hidden)).astype(np.float32)
    arrays = {"vectors": vector, "layers": np.asarray([1], np.int32)}
    data = write_artifact("vectors", asker.fingerprint, arrays)
    path = f"/v1/artifacts/{hashlib.sha256(data).hexdigest()}"
    kept = await asker.client.put(path, content=data)
    if kept.status_code != 201:
        raise Unexpected(f"an upload was answered with {kept.status_code}: {kept.text[:300]}")
    entry = {"method": "steering", "artifact": kept.json()["id"], "coefficient": 0.5}
    answer = await asker.post(CHAT, asker.body(interventions=[entry]), 200)
    if asker.deletes and (await asker.client.delete(path)).status_code not in (200, 204):
        raise Unexpected("an artifact is not deleted")
    return outcome(answer)


async def looked(asker: Asker) -> str:
    for path in LOOKED:
        answer = await asker.client.get(path)
        if answer.status_code not in (200, 503):
            raise Unexpected(f"{path} answered {answer.status_code}")
    return "answered"


Kind = Callable[[Asker], Awaitable[str]]
KINDS: dict[Kind, int] = {
    plain: 6,
    streamed: 6,
    traced: 3,
    detected: 1,
    scored: 2,
    left_in_the_middle: 4,
    left_before_the_answer: 3,
    half_a_body: 1,
    read_slowly: 2,
    refused: 3,
    no_json: 1,
    artifact: 2,
    looked: 1,
}
"""How often each is drawn, relative to the others."""
