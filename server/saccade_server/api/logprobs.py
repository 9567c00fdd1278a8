"""Log-probabilities in the two shapes that the OpenAI API has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from saccade_server.engine.request import TokenLogprobs

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot carry; vLLM's number."""


class TokenNames(Protocol):
    """Knows the text and the bytes of a token."""

    def token_text(self, token: int) -> tuple[str, bytes]: ...


def chat_logprobs(names: TokenNames, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
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
    names: TokenNames, entries: Sequence[TokenLogprobs], offsets: Sequence[int]
) -> dict[str, Any]:
    """The ``logprobs`` object of a plain completion; ``offsets`` count in the answer's text."""
    return {
        "tokens": [names.token_text(entry.token)[0] for entry in entries],
        "token_logprobs": [max(entry.logprob, LOWEST) for entry in entries],
        "top_logprobs": [
            {
                names.token_text(token)[0]: max(logprob, LOWEST)
                # The sampled token is among them even if it is not among the likeliest.
                for token, logprob in ((entry.token, entry.logprob), *entry.top)
            }
            for entry in entries
        ],
        "text_offset": list(offsets),
    }
