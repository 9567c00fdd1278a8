"""The token that every chat with a model begins with, as its folder's template really gives it."""

from __future__ import annotations

from saccade_server.models.conversation import Message, PromptError
from saccade_server.models.folder import UnsupportedModelError
from saccade_server.models.prompt import PromptProcessor

TEXTS = ("Hello.", "What is it?")
"""Whatever is asked: a token that changes with it is no opening."""


def first_token(model: str) -> int | None:
    """The first token of chats: a BOS, or what the template begins turns with.

    Returns:
        None if the folder (or hub name) has no tokenizer or template, or chats begin otherwise
        each time; then nothing is known.
    """
    try:
        return opening(PromptProcessor.load(model))
    except UnsupportedModelError:
        return None


def opening(prompts: PromptProcessor) -> int | None:
    """As :func:`first_token`, of a folder whose prompts are at hand."""
    try:
        chats = [prompts.chat([Message("user", (text,))]) for text in TEXTS]
    except PromptError:
        return None
    first = {chat.tokens[0] for chat in chats}
    return first.pop() if len(first) == 1 else None
