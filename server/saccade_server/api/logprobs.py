"""Log-probabilities in the two shapes that the OpenAI API has for them, and in vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from saccade_server.requests.scores import TokenScore

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot carry; vLLM's number."""


class Entry(Protocol):
    """A token, how likely it was, and the likeliest ones in its place."""

    @property
    def token(self) -> int: ...

    @property
    def logprob(self) -> float: ...

    @property
    def top(self) -> tuple[tuple[int, float], ...]: ...


class TokenNames(Protocol):
    """Knows the text and the bytes of a token."""

    def token_text(self, token: int) -> tuple[str, bytes]: ...


def chat_logprobs(names: TokenNames, entries: Sequence[Entry]) -> dict[str, Any]:
    """The ``logprobs`` object of a chat choice."""

    def item(token: int, logprob: float) -> dict[str, Any]:
        text, data = names.token_text(token)
        return {"token": text, "logprob": max(logprob, LOWEST), "bytes": list(data)}

    content = [
        {
            **item(entry.token, entry.logprob),
            "top_logprobs": [item(token, logprob) for token, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    names: TokenNames, entries: Sequence[Entry], offsets: Sequence[int]
) -> dict[str, list[Any]]:
    """The ``logprobs`` object of a plain completion; ``offsets`` count in the choice's text."""
    return {
        "tokens": [names.token_text(entry.token)[0] for entry in entries],
        "token_logprobs": [max(entry.logprob, LOWEST) for entry in entries],
        "top_logprobs": [_by_text(names, entry) for entry in entries],
        "text_offset": list(offsets),
    }


def _by_text(names: TokenNames, entry: Entry) -> dict[str, float]:
    """The token, even if it is not among the likeliest, and these; of equal texts the likeliest.

    So a harness sees whether a token was the likeliest, whatever halves of characters are among
    them.
    """
    found: dict[str, float] = {}
    for token, logprob in ((entry.token, entry.logprob), *entry.top):
        text = names.token_text(token)[0]
        found[text] = max(logprob, found.get(text, LOWEST), LOWEST)
    return found


def echoed_logprobs(
    names: TokenNames, first: int, entries: Sequence[Entry], offsets: Sequence[int]
) -> dict[str, list[Any]]:
    """As :func:`completion_logprobs`, of a prompt: nothing predicts its ``first`` token."""
    told = completion_logprobs(names, entries, offsets)
    told["tokens"].insert(0, names.token_text(first)[0])
    told["token_logprobs"].insert(0, None)
    told["top_logprobs"].insert(0, None)
    return told


def prompt_logprobs(
    names: TokenNames, entries: Sequence[TokenScore], most: int
) -> list[dict[str, dict[str, Any]] | None]:
    """The ``prompt_logprobs`` of a choice: one object a token of the prompt, null for its first.

    By token id: the token itself, then the ``most`` likeliest in its place, each once.
    """

    def item(token: int, logprob: float, rank: int) -> dict[str, Any]:
        text = names.token_text(token)[0]
        return {"logprob": max(logprob, LOWEST), "rank": rank, "decoded_token": text}

    found: list[dict[str, dict[str, Any]] | None] = [None]
    for entry in entries:
        own = {str(entry.token): item(entry.token, entry.logprob, entry.rank)}
        for rank, (token, logprob) in enumerate(entry.top[:most], start=1):
            own.setdefault(str(token), item(token, logprob, rank))
        found.append(own)
    return found
