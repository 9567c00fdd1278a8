"""Models that think: the markers around their reasoning, and how far a prompt is with it.

The markers are those that the chat template writes, or looks for in what an assistant said: a pair
such as ``<think>`` and ``</think>``, ``[THINK]`` and ``[/THINK]``, whose name speaks of thinking.
A template that only takes thoughts out of histories names the second alone; then the first must be
a token of the tokenizer. A tokenizer's tokens are no evidence by themselves: models that never
think share them with their siblings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from saccade_server.models.conversation import Message, PromptError
from saccade_server.models.encoding import TextEncoder
from saccade_server.models.sanitize import Segment
from saccade_server.models.template import ChatTemplate

CLOSING = re.compile(
    r"(?P<left>[<\[◁]\|?)/(?P<name>[\w:.-]*(?:think|thought|reason)[\w:.-]*)(?P<right>\|?[>\]▷])",
    re.IGNORECASE,
)
"""What ends a thought, as templates write it."""


class Thought(StrEnum):
    """How far a prompt's end is with the reasoning of the answer behind it."""

    FREE = "free"
    """The answer may begin with some."""
    BEGUN = "begun"
    """The prompt has opened it: the answer is reasoning until the closing marker."""
    OVER = "over"
    """The prompt has closed it, or continues a text that stands behind it: none comes."""


@dataclass(frozen=True)
class Markers:
    """The texts around a model's reasoning.

    ``tokens`` are the two tokens that they are; None if one of them is several: then they are told
    by their text. ``special``: the opening one carries structure, so that no message can hold it.
    """

    opens: str
    closes: str
    tokens: tuple[int, int] | None = None
    special: bool = False


def find_markers(template: ChatTemplate, encoder: TextEncoder) -> Markers | None:
    """The markers of a model; None if its template speaks of no thoughts."""
    text = "\n".join(template.texts)
    found: dict[str, Markers] = {}
    for match in CLOSING.finditer(text):
        opens = match["left"] + match["name"] + match["right"]
        if opens in text or opens in encoder.controls.all:
            found.setdefault(opens, _markers(opens, match.group(), encoder))

    def doubt(markers: Markers) -> tuple[bool, bool]:
        return not template.closes_thoughts(markers.closes), markers.tokens is None

    return min(found.values(), key=doubt, default=None)


def thought_begun(
    markers: Markers, segments: Sequence[Segment], bare: Callable[[], Sequence[Segment]]
) -> Thought:
    """How far a prompt is that ends with the beginning of an answer.

    Args:
        markers: of the model.
        segments: the prompt.
        bare: makes the same conversation without that beginning. Asked for where markers stand
            behind everything that was typed as one: histories have some too.
    """
    written = "" if not segments or segments[-1].typed else segments[-1].text
    if markers.opens not in written and markers.closes not in written:
        return Thought.FREE
    behind = _behind(_text(segments), bare)
    beginning = written if behind is None else behind
    last = max(beginning.rfind(markers.opens), beginning.rfind(markers.closes))
    if last < 0:
        return Thought.FREE
    return Thought.BEGUN if beginning.startswith(markers.opens, last) else Thought.OVER


def thought_continued(markers: Markers, message: Message) -> Thought:
    """How far a prompt is that ends inside ``message``, an assistant's."""
    if markers.special:
        return Thought.OVER
    said = "".join(part for part in message.parts if isinstance(part, str))
    inside = said.rfind(markers.opens) > said.rfind(markers.closes)
    return Thought.BEGUN if inside else Thought.OVER


def _markers(opens: str, closes: str, encoder: TextEncoder) -> Markers:
    first, last = encoder.token_of(opens), encoder.token_of(closes)
    tokens = None if first is None or last is None else (first, last)
    return Markers(opens, closes, tokens, opens in encoder.controls.special)


def _behind(whole: str, bare: Callable[[], Sequence[Segment]]) -> str | None:
    """What ``whole`` has behind the text that ``bare`` makes; None if that cannot be written."""
    try:
        before = _text(bare())
    except PromptError:
        return None
    if whole.startswith(before):
        return whole[len(before) :]
    pairs = enumerate(zip(whole, before, strict=False))
    return whole[next((at for at, (mine, other) in pairs if mine != other), len(whole)) :]


def _text(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments)
