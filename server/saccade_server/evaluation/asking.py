"""Questions to a server over its HTTP API, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from saccade_server.evaluation.errors import EvaluationError, SettingRefused

BUSY = (429, 503)
"""Nothing was begun. What a server that ends had begun is a 500 that says when to ask again."""
MOST_ATTEMPTS = 60
LONGEST_WAIT = 30.0

UNTHINKING: dict[str, Any] = {"thinking": {"type": "disabled"}}
"""Asks for an answer that begins at once; refused by a model that always thinks first."""

Entries = Sequence[dict[str, Any]]
"""The ``interventions`` of a request."""


@dataclass(frozen=True)
class Reply:
    """One answer: its text, its length in tokens, and each intervention's status."""

    text: str
    tokens: int
    status: tuple[str, ...] = ()


class Asker:
    """Asks a server's chat endpoint, at most ``concurrency`` questions at a time.

    ``fingerprint`` is what the server says of its weights, if it does.
    """

    def __init__(self, client: Any, model: str, concurrency: int, fingerprint: str = "") -> None:
        self._client = client
        self._gate = asyncio.Semaphore(concurrency)
        self.model = model
        self.fingerprint = fingerprint

    @classmethod
    async def connect(cls, client: Any, concurrency: int) -> Asker:
        """Ask for the first model that a server lists.

        Raises:
            EvaluationError: nobody answers, or something else than a model server.
        """
        answer = await _send(client, "GET", "/v1/models")
        try:
            card = answer.json()["data"][0]
            name = str(card["id"])
        except (KeyError, IndexError, TypeError, ValueError):
            message = f"no list of models at {answer.url}: {_message(answer)}"
            raise EvaluationError(message) from None
        return cls(client, name, concurrency, str(card.get("fingerprint", "")))

    async def ask(
        self, messages: list[dict[str, Any]], entries: Entries, sampling: dict[str, Any]
    ) -> Reply:
        """Answer one conversation.

        Raises:
            SettingRefused: the server does not do this; the message says why.
            EvaluationError: it failed.
        """
        answer = await self.chat(messages, entries, sampling)
        receipt = answer.get("interventions_applied") or []
        return Reply(
            text=answer["choices"][0]["message"]["content"] or "",
            tokens=int(answer["usage"]["completion_tokens"]),
            status=tuple(str(entry["status"]) for entry in receipt),
        )

    async def likely_tokens(
        self, messages: list[dict[str, Any]], entries: Entries, count: int
    ) -> dict[str, float]:
        """The likeliest first tokens of the answer, as text, with their log-probabilities.

        Raises:
            SettingRefused: the model always thinks first.
        """
        sampling = {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": count}
        answer = await self.chat(messages, entries, sampling | UNTHINKING)
        (position,) = answer["choices"][0]["logprobs"]["content"]
        return {entry["token"]: float(entry["logprob"]) for entry in position["top_logprobs"]}

    async def methods(self) -> list[dict[str, Any]]:
        """What the server lists about its methods."""
        answer = await _send(self._client, "GET", "/v1/interventions")
        if answer.status_code != 200:
            raise EvaluationError(f"no list of interventions: {_message(answer)}")
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    async def chat(
        self, messages: list[dict[str, Any]], entries: Entries, sampling: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A chat completion; an assistant's message at the end is continued.

        Raises:
            SettingRefused, EvaluationError: as :meth:`ask`.
        """
        body = {
            "model": self.model,
            "messages": messages,
            "interventions": list(entries),
            **sampling,
        }
        if messages[-1]["role"] == "assistant":
            body["continue_final_message"] = True
        return await self._post("/v1/chat/completions", body)

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._gate:
            for _ in range(MOST_ATTEMPTS):
                answer = await _send(self._client, "POST", path, body)
                if not _is_passing(answer):
                    break
                await asyncio.sleep(_wait(answer))
        if 400 <= answer.status_code < 500 and answer.status_code not in (401, 403, 404, *BUSY):
            raise SettingRefused(_message(answer))
        if answer.status_code != 200:
            raise EvaluationError(f"HTTP {answer.status_code} from {path}: {_message(answer)}")
        found: dict[str, Any] = answer.json()
        return found


def user_message(text: str, images: Sequence[str]) -> list[dict[str, Any]]:
    """A conversation of one message: images (URLs) first, then the text."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}} for url in images
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


async def _send(client: Any, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    try:
        return await client.request(method, path, json=body)
    except httpx2.HTTPError as error:
        why = f"nobody answers at {client.base_url} ({str(error) or type(error).__name__})"
        raise EvaluationError(f"{why}; start a server there, or correct --url") from error


def _is_passing(answer: Any) -> bool:
    """True of a refusal that is gone when the question is asked again a little later."""
    ended = answer.status_code == 500 and "retry-after" in answer.headers
    return ended or answer.status_code in BUSY


def _wait(answer: Any) -> float:
    """Seconds that a busy server asks for."""
    try:
        return min(float(answer.headers.get("retry-after", "1")), LONGEST_WAIT)
    except ValueError:
        return 1.0


def _message(answer: Any) -> str:
    """The server's error in one line."""
    try:
        error = answer.json()["error"]
    except (KeyError, TypeError, ValueError):
        return f"HTTP {answer.status_code}: {answer.text[:200]}"
    where = f" ({error['param']})" if error.get("param") else ""
    return f"{error['message']}{where}"
