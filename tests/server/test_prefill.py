"""Prompts that end inside an assistant's text, on the demo model: the answer goes on from there."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from saccade_server.config import engine_config
from saccade_server.demo import sample_path
from saccade_server.inprocess import open_server

SCALED = {
    "method": "head_scale",
    "gain": 0.6,
    "layers": [2, 3],
    "heads": "all",
    "rows": "prompt+generated",
}


def question() -> dict[str, Any]:
    image = base64.b64encode(sample_path("clear-1").read_bytes()).decode()
    url = {"url": f"data:image/png;base64,{image}"}
    text = {"type": "text", "text": "Describe the image."}
    return {"role": "user", "content": [{"type": "image_url", "image_url": url}, text]}


def on_the_demo(check: Callable[[httpx2.AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_server(engine_config(device="cpu", cache_tokens=8192), "m") as client:
            await check(client)

    asyncio.run(main())


async def ask(client: httpx2.AsyncClient, *said: str, **fields: Any) -> dict[str, Any]:
    body = {
        "messages": [question(), *({"role": "assistant", "content": text} for text in said)],
        "temperature": 0,
        "max_tokens": 40,
        "continue_final_message": bool(said),
        **fields,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize("entries", [[], [SCALED]], ids=["plain", "edited"])
def test_an_answer_continued_is_the_rest_of_it(entries: list[dict[str, Any]]) -> None:
    """An edit of all rows does not ask who wrote a row; pages that were cached do not matter."""

    async def check(client: httpx2.AsyncClient) -> None:
        whole = text_of(await ask(client, interventions=entries))
        words = whole.split(" ")
        assert len(words) > 8
        for count in (1, 3, len(words) - 2):
            head = " ".join(words[:count])
            for _ in range(2):
                answer = await ask(client, head, interventions=entries)
                assert head + text_of(answer) == whole
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
            if entries:
                assert answer["interventions_applied"][0]["status"] == "applied"

    on_the_demo(check)


def test_texts_of_the_prefill_can_be_highlighted() -> None:
    async def check(client: httpx2.AsyncClient) -> None:
        entry = {"method": "pasta", "highlight": ["There is"], "layers": [2], "alpha": 0.1}
        answer = await ask(client, "There is a", interventions=[entry])
        assert answer["interventions_applied"][0]["status"] == "applied"
        # Nothing of it is in the prompt without the prefill.
        body = {"messages": [question()], "interventions": [entry]}
        refused = await client.post("/v1/chat/completions", json=body)
        assert refused.json()["error"]["code"] == "intervention_target_not_found"

    on_the_demo(check)


def test_an_answer_has_min_tokens() -> None:
    async def check(client: httpx2.AsyncClient) -> None:
        short = await ask(client, stop=["a"])
        assert text_of(short) == "There is "
        least = short["usage"]["completion_tokens"] + 4
        words = await client.post("/tokenize", json={"prompt": "There is a"})
        ends = {"stop_token_ids": words.json()["tokens"]}
        assert (await ask(client, **ends))["usage"]["completion_tokens"] < least
        for fields in ({"stop": ["a"]}, ends):
            answer = await ask(client, min_tokens=least, **fields)
            assert answer["usage"]["completion_tokens"] >= least

    on_the_demo(check)
