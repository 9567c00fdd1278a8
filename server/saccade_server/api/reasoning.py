"""Tells a model's reasoning from its answer, and lets a grammar begin behind it.

Where the model's markers are tokens, they are told by these alone: the detokenizer writes a
character for each that no text has. So a marker that the model spells out, as any text about
markers does, stays text, and what is read as the end of the reasoning is the token behind which
the engine holds a grammar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from saccade_server.api.body.schemas import ChatRequest, Sampled
from saccade_server.api.errors import unsupported
from saccade_server.api.reading import Reader, Said
from saccade_server.api.stops import overlap
from saccade_server.grammars.grammar import Grammar, Thinking
from saccade_server.models.reasoning import Markers, Thought
from saccade_server.models.rendered import RenderedPrompt

OPENS, CLOSES = "\udc01", "\udc02"
"""Stand for the tokens of markers; no decoded text has lone surrogates."""


class Telling(Enum):
    """What becomes of the text of reasoning."""

    APART = auto()
    LEFT_OUT = auto()
    AS_TEXT = auto()

    @classmethod
    def of(cls, body: ChatRequest) -> Telling:
        """What a request asks for."""
        if body.include_reasoning is False:
            return cls.LEFT_OUT
        return cls.AS_TEXT if body.separate_reasoning is False else cls.APART


@dataclass(frozen=True)
class MayThink:
    """What a request's answers are that may begin with reasoning.

    ``begun``: the prompt has opened it.
    """

    markers: Markers
    begun: bool
    telling: Telling

    @classmethod
    def of(cls, markers: Markers | None, body: Sampled, prompt: RenderedPrompt) -> MayThink | None:
        """None if the answers do not think, or their text is not to be read."""
        free = prompt.thought in (Thought.FREE, Thought.BEGUN)
        if markers is None or not free or not isinstance(body, ChatRequest):
            return None
        return cls(markers, prompt.thought is Thought.BEGUN, Telling.of(body))

    def reader(self, inner: Reader | None) -> Reader:
        """What reads one answer; ``inner`` reads what stands behind the reasoning."""
        return ThinkingReader(self.markers, self.begun, self.telling, inner)

    def grammar(self, grammar: Grammar, field: str) -> Grammar:
        """The grammar that ``field`` asks for, beginning behind the reasoning.

        One that has no token to begin behind holds at once, so that the answer does not think.

        Raises:
            BadRequest: it cannot hold at once either, because the prompt has begun the reasoning.
        """
        if self.markers.tokens is not None:
            opens, closes = self.markers.tokens
            thinking = Thinking(None if self.begun else opens, closes)
            return msgspec.structs.replace(grammar, thinking=thinking)
        if not self.begun:
            return grammar
        message = (
            f"{field} is not possible on this model: its chat template begins the answer with "
            f"reasoning, and {self.markers.closes} is several tokens, behind which no grammar can "
            "begin."
        )
        raise unsupported(field, message)


class _Where(Enum):
    BEFORE = auto()
    INSIDE = auto()
    CLOSED = auto()
    BEHIND = auto()


class ThinkingReader:
    """A :class:`~saccade_server.api.reading.Reader` of an answer that may begin with reasoning.

    Line feeds next to the markers are the template's. Reasoning that is never closed is reasoning
    to the end, and one that is closed is not opened again. ``begun``: the prompt has opened it.
    ``inner`` reads what stands behind.
    """

    def __init__(
        self, markers: Markers, begun: bool, telling: Telling, inner: Reader | None = None
    ) -> None:
        self._opens, self._closes = markers.opens, markers.closes
        self._shown: dict[int, str] = {}
        self._own: dict[int, str] = {}
        if markers.tokens is not None:
            texts = ("", "") if markers.special else (markers.opens, markers.closes)
            self._opens, self._closes = OPENS, CLOSES
            self._shown = dict(zip(markers.tokens, (OPENS, CLOSES), strict=True))
            self._own = dict(zip(map(ord, (OPENS, CLOSES)), texts, strict=True))
        self._begun = begun
        self._telling = telling
        self._inner = inner
        self._where = _Where.BEFORE
        self._thinks = False  # it has said something
        self._held = ""
        self._read = 0
        self._ends = math.inf if begun else 0.0

    @property
    def shown(self) -> Mapping[int, str]:
        """What the detokenizer writes for markers."""
        return self._shown if self._inner is None else {**self._inner.shown, **self._shown}

    @property
    def reasoned(self) -> float:
        """How many characters of what was read are reasoning; endless until it is closed."""
        return self._ends

    @property
    def has_called(self) -> bool:
        """Some tool has been called."""
        return self._inner is not None and self._inner.has_called

    def read(self, text: str, last: bool) -> Said:
        """Take the next piece."""
        self._read += len(text)
        text = self._held + text
        thought, rest = self._advance(text, last)
        passed = text[: len(text) - len(rest)]
        is_behind = self._where is _Where.BEHIND
        content, self._held = (rest, "") if is_behind else ("", rest)
        said = Said(self._plain(content))
        if self._inner is not None:
            said = self._inner.read(said.text, last)
        match self._telling:
            case Telling.APART:
                return Said(said.text, self._plain(thought), said.calls) if thought else said
            case Telling.LEFT_OUT:
                return said
            case Telling.AS_TEXT:
                return Said(self._plain(passed) + said.text, calls=said.calls)

    def _advance(self, text: str, last: bool) -> tuple[str, str]:
        """What is thought in ``text``, and what is left of it."""
        thought = ""
        if self._where is _Where.BEFORE:
            text = self._enter(text, last)
        if self._where is _Where.INSIDE:
            thought, text = self._think(text, last)
        if self._where is _Where.CLOSED:
            text = text.lstrip("\n")
            if text or last:
                self._where = _Where.BEHIND
        return thought, text

    def _enter(self, text: str, last: bool) -> str:
        said = text.lstrip()
        if said.startswith(self._opens):
            self._where, self._ends = _Where.INSIDE, math.inf
            return said[len(self._opens) :]
        if last or not self._opens.startswith(said):
            self._where = _Where.INSIDE if self._begun else _Where.BEHIND
        return text

    def _think(self, text: str, last: bool) -> tuple[str, str]:
        if not self._thinks:
            text = text.lstrip("\n")
        head, closed, rest = text.partition(self._closes)
        if closed:
            self._where, self._ends = _Where.CLOSED, self._read - len(rest)
        elif not last:
            head = text[: len(text) - overlap(text, self._closes)]
        thought = head.rstrip("\n")
        self._thinks = self._thinks or bool(thought)
        return thought, rest if closed or last else text[len(thought) :]

    def _plain(self, text: str) -> str:
        """Markers that mark nothing as their own text, as far as they have one."""
        return text if text.isascii() else text.translate(self._own)
