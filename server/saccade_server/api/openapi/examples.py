"""Request bodies that the OpenAPI document shows; a test sends each of them."""

from __future__ import annotations

from typing import Any

PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAFklEQVR42mM4YWNDEmIY"
    "1TCqYfhqAACrxkAQIHrJ+wAAAABJRU5ErkJggg=="
)
"""Sixteen by sixteen pixels, of one colour."""


def _example(summary: str, **value: Any) -> dict[str, Any]:
    return {"summary": summary, "value": value}


def _look(text: str) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": PICTURE}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


CHAT = {
    "plain": _example(
        "A question",
        messages=[{"role": "user", "content": "Describe the image."}],
        max_tokens=32,
        temperature=0,
    ),
    "image": _example(
        "An image, and a method that redirects attention to it",
        messages=_look("Describe the image."),
        interventions=[{"method": "var", "move_fraction": 0.6}],
        max_tokens=32,
        temperature=0,
    ),
    "traced": _example(
        "What each layer attends to while it answers, and heat maps of the image",
        messages=_look("Describe the image."),
        trace={"masses": True, "heatmaps": {"reduce": ["layer", "head"]}},
        max_tokens=8,
        temperature=0,
    ),
    "streamed": _example(
        "A stream that ends with the counts of tokens",
        messages=[{"role": "user", "content": "Describe the image."}],
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=32,
    ),
}
COMPLETION = {
    "text": _example("A text to continue", prompt="There is a red", max_tokens=8, temperature=0),
    "several": _example("Several prompts", prompt=["There is a", "The circle is"], max_tokens=8),
}
VALIDATION = {
    "entries": _example(
        "Entries, and the conversation they are for",
        interventions=[{"method": "pai", "alpha": 0.5}],
        messages=_look("Describe the image."),
    ),
}
SCORE = {
    "text": _example(
        "Which of two words follows", prompt="There is a red", continuations=[" circle", " cat"]
    ),
    "image": _example(
        "How likely two answers are about an image, under a method",
        messages=_look("Is there a circle?"),
        continuations=["Yes", "No"],
        interventions=[{"method": "pai", "alpha": 0.5}],
    ),
}
TOKENIZE = {
    "prompt": _example("A plain prompt", prompt="There is a red", return_token_strs=True),
    "messages": _example(
        "A conversation, as a chat would have it",
        messages=[{"role": "user", "content": "Describe the image."}],
    ),
}
DETOKENIZE = {"tokens": _example("Some tokens", tokens=[5, 6, 7])}
