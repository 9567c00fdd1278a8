"""The bytes of a model's tokens, by id: what grammars over them are made of."""

from __future__ import annotations

from saccade_server.models.prompt import PromptProcessor


def token_bytes(prompts: PromptProcessor, size: int) -> list[bytes]:
    """Of the tokens from 0 to ``size``; none for ids that are no token or no text."""
    special = prompts.textless_token_ids
    return [b"" if token in special else prompts.token_text(token)[1] for token in range(size)]
