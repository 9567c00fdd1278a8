"""Questions to a running server, and answers in a form that can be compared."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx2

QUESTION = "Describe the image."
SECONDS = 60.0

PHRASES = re.compile(
    r"Input (should|tag)|Field required|Extra inputs|(List|String|Tuple|Dictionary) should"
    r"|after validation|Unable to extract|pydantic|Traceback|Errno|0x[0-9a-f]{6}|\.py\b|/tmp/",
)
"""What libraries and file systems say of themselves; no user is helped by it."""


@dataclass(frozen=True)
class Seen:
    """An answer as numbers: its text, and the log-probability of each of its tokens."""

    text: str
    logprobs: tuple[float, ...]
    prompt_tokens: int

    def distance(self, other: Seen) -> float:
        """The largest difference of two log-probabilities; infinite for answers unlike each other.

        Of equal texts it says how far apart the two inputs were, of others that they were.
        """
        if self.text != other.text or len(self.logprobs) != len(other.logprobs):
            return float("inf")
        pairs = zip(self.logprobs, other.logprobs, strict=True)
        return max((abs(a - b) for a, b in pairs), default=0.0)


@dataclass(frozen=True)
class Streamed:
    """A stream that has ended."""

    status: int
    headers: httpx2.Headers
    raw: str

    @property
    def events(self) -> list[str]:
        """The data of every event, comments left out."""
        return [line[6:] for line in self.raw.split("\n") if line.startswith("data: ")]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """Every event but the last, which must be ``[DONE]``."""
        assert self.status == 200, self.raw
        *events, last = self.events
        assert last == "[DONE]", self.raw
        return [json.loads(event) for event in events]

    @property
    def choices(self) -> list[dict[str, Any]]:
        """The one choice of every chunk that has one."""
        return [choice for chunk in self.chunks for choice in chunk["choices"]]

    @property
    def text(self) -> str:
        """What a client shows that appends."""
        return "".join(choice["delta"].get("content") or "" for choice in self.choices)


class Asker:
    """A client of one server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx2.Client(base_url=url, timeout=SECONDS, trust_env=False)

    @cached_property
    def card(self) -> dict[str, Any]:
        """What the server says about its model."""
        card: dict[str, Any] = self.http.get("/v1/models").json()["data"][0]
        return card

    def body(self, *messages: Any, **more: Any) -> dict[str, Any]:
        """A greedy chat of a few tokens; a text is a user's message, ``...`` leaves a field out."""
        said = [user(item) if isinstance(item, str) else item for item in messages]
        fields = {"model": self.card["id"], "messages": said, "temperature": 0, "max_tokens": 16}
        return {name: value for name, value in (fields | more).items() if value is not ...}

    def chat(self, *messages: Any, **more: Any) -> httpx2.Response:
        """Ask for one chat completion."""
        return self.http.post("/v1/chat/completions", json=self.body(*messages, **more))

    def complete(self, prompt: Any, **more: Any) -> httpx2.Response:
        """Ask for one plain completion."""
        fields = {"model": self.card["id"], "prompt": prompt, "temperature": 0, "max_tokens": 8}
        return self.http.post("/v1/completions", json=fields | more)

    def see(self, *messages: Any, **more: Any) -> Seen:
        """A chat that must be answered."""
        return seen(self.chat(*messages, logprobs=True, **more))

    def look(self, url: str, question: str = QUESTION, **more: Any) -> Seen:
        """An image with a question behind it."""
        return self.see(user(image(url), text(question)), **more)

    def continued(self, prompt: str, **more: Any) -> Seen:
        """A plain completion that must be answered, to compare chats with."""
        answer = self.complete(prompt, logprobs=0, **({"max_tokens": 16} | more))
        body = answered(answer)
        choice = body["choices"][0]
        logprobs = tuple(choice["logprobs"]["token_logprobs"])
        return Seen(choice["text"], logprobs, body["usage"]["prompt_tokens"])

    def stream(self, *messages: Any, **more: Any) -> Streamed:
        """A streamed chat, read to its end."""
        return self.stream_from("/v1/chat/completions", self.body(*messages, stream=True, **more))

    def stream_from(self, path: str, body: dict[str, Any]) -> Streamed:
        """Whatever a route streams."""
        with self.http.stream("POST", path, json=body) as answer:
            raw = "".join(answer.iter_text())
        return Streamed(answer.status_code, answer.headers, raw)

    def at_once(self, calls: Sequence[Any]) -> list[Any]:
        """Run functions in as many threads."""
        with ThreadPoolExecutor(len(calls)) as pool:
            return [done.result() for done in [pool.submit(call) for call in calls]]

    def connect(self) -> socket.socket:
        """A bare connection."""
        where = urlsplit(self.url)
        return socket.create_connection((where.hostname, where.port), timeout=SECONDS)

    def exchange(self, request: bytes) -> bytes:
        """Send bytes and read until the server closes."""
        with self.connect() as link:
            link.sendall(request)
            return b"".join(iter(lambda: link.recv(65536), b""))


def user(*parts: Any, **more: Any) -> dict[str, Any]:
    """A user's message of one text or of parts."""
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
    return {"role": "user", "content": content, **more}


def said(content: Any, **more: Any) -> dict[str, Any]:
    """The assistant's message; ``...`` for one without content."""
    return {"role": "assistant", **({} if content is ... else {"content": content}), **more}


def text(value: str, **more: Any) -> dict[str, Any]:
    """A text part."""
    return {"type": "text", "text": value, **more}


def image(url: str, **more: Any) -> dict[str, Any]:
    """An image part."""
    return {"type": "image_url", "image_url": {"url": url, **more}}


def answered(response: httpx2.Response) -> dict[str, Any]:
    """The body of an answer that must be a success."""
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def content(response: httpx2.Response) -> str:
    """The text of a chat that must be answered."""
    text: str = answered(response)["choices"][0]["message"]["content"]
    return text


def seen(response: httpx2.Response) -> Seen:
    """An answer whose log-probabilities were asked for."""
    body = answered(response)
    choice = body["choices"][0]
    entries = tuple(entry["logprob"] for entry in choice["logprobs"]["content"])
    return Seen(choice["message"]["content"], entries, body["usage"]["prompt_tokens"])


def refused(
    response: httpx2.Response,
    param: str | None,
    code: str | None = None,
    *,
    status: int = 400,
    says: str = "",
) -> str:
    """The message of a refusal: OpenAI's error object, at ``param``, in words for a user."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert code is None or error["code"] == code, error
    message: str = error["message"]
    assert 0 < len(message) <= 1000
    assert not PHRASES.search(message), message
    assert says.lower() in message.lower(), message
    return message
