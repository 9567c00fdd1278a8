"""Log probabilities, of answers and of prompts."""

from pydantic import Field

from saccade_client.wire import Wire


class TopLogprob(Wire):
    """One alternative token with its natural-log probability."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A generated token, its log probability and its closest rivals."""

    top_logprobs: list[TopLogprob] = Field(default_factory=list)


class ChatLogprobs(Wire):
    """Log probabilities of the generated tokens, in order."""

    content: list[TokenLogprob] | None = None


class PromptLogprob(Wire):
    """How likely a token was in its place of the prompt; the likeliest has rank 1."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""Of each token of a prompt itself and its rivals, by their ids; None for the first."""


class TextLogprobs(Wire):
    """Log probabilities as /v1/completions gives them: parallel lists, one item a token.

    The first token of an echoed prompt has none.
    """

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None
