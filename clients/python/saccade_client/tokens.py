"""Tokens of a text or a conversation, and the text of tokens."""

from saccade_client.wire import Reply


class Tokens(Reply):
    """The tokens of a prompt; `token_strs` are as the vocabulary writes them, if asked for."""

    count: int
    tokens: list[int]
    max_model_len: int | None = None
    token_strs: list[str] | None = None


class Detokenized(Reply):
    """The text of tokens, control tokens included."""

    prompt: str
