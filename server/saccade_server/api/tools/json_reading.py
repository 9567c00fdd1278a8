"""JSON read as it comes: a text in pieces of any cut, taken by generators that wait for more.

What they take does not depend on where the text was cut. A generator returns once it has what it
looks for, or knows that it will not come; until then it gives way whenever the text is at its end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from functools import lru_cache

Waiting = Generator[None, None, None]
Asked = Generator[None, None, bool]
Taken = Generator[None, None, str]
Found = Generator[None, None, str | None]
Emit = Callable[[str], None]

SPACE = r"[ \t\r\n]"
PLAIN = r'[^"\\]'
SCALAR = r"[-+.\w]"
ANYTHING = r"[\s\S]"
SURROGATE = re.compile("[\ud800-\udfff]")
OPENED = {"{": 1, "[": 1, "}": -1, "]": -1}
HEX_DIGITS = 4


class Pieces:
    """A text of which there is more and more; what is before ``mark`` is forgotten."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.mark = 0
        self.ended = False

    def add(self, text: str, last: bool) -> None:
        """Put the next piece behind; ``last``: there is no more."""
        self.text = self.text[self.mark :] + text
        self.at -= self.mark
        self.mark = 0
        self.ended = last

    @property
    def marked(self) -> str:
        """The text from the mark to what is taken."""
        return self.text[self.mark : self.at]

    def forget(self) -> None:
        """Set the mark to what is taken."""
        self.mark = self.at

    def peek(self) -> Taken:
        """The next character, left where it is; empty at the end."""
        while self.at >= len(self.text) and not self.ended:
            yield
        return self.text[self.at : self.at + 1]

    def some(self, characters: str) -> str:
        """As many of a class of characters as there are by now."""
        found = _run(characters).match(self.text, self.at)
        taken = found.group() if found else ""
        self.at += len(taken)
        return taken

    def run(self, characters: str) -> Taken:
        """All of a class of characters that come one behind the other."""
        taken = ""
        while True:
            taken += self.some(characters)
            if self.at < len(self.text) or not (yield from self.peek()):
                return taken

    def follows(self, text: str) -> Asked:
        """Whether ``text`` comes next; it is left where it is."""
        while not self.ended and len(self.text) - self.at < len(text):
            if not text.startswith(self.text[self.at :]):
                return False
            yield
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> Asked:
        """Take ``text`` if it comes next."""
        found = yield from self.follows(text)
        if found:
            self.at += len(text)
        return found

    def take_begun(self, text: str) -> Asked:
        """Take ``text`` if it comes next, or what there is of it before the end."""
        found = yield from self.take(text)
        rest = self.text[self.at :]
        if not found and self.ended and rest and text.startswith(rest):
            self.at += len(rest)
            return True
        return found


def string(source: Pieces, emit: Emit) -> Asked:
    """Take a string with its quotes, giving what comes of it at once; False if it does not end."""
    emit('"')
    source.at += 1
    while True:
        emit(source.some(PLAIN))
        following = yield from source.peek()
        if not following:
            return False
        if following not in '"\\':
            continue
        source.at += 1
        if following == '"':
            emit('"')
            return True
        escaped = yield from source.peek()  # whatever it is, it does not end the string
        source.at += len(escaped)
        emit("\\" + escaped)


def contents(source: Pieces, emit: Emit) -> Asked:
    """Take a string and give what it says, without quotes and escapes; False if it does not end."""
    source.at += 1
    while True:
        emit(source.some(PLAIN))
        following = yield from source.peek()
        if not following:
            return False
        if following == '"':
            source.at += 1
            return True
        if following == "\\":
            emit((yield from _unescaped(source)))


def value(source: Pieces, emit: Emit, breaks: str = "") -> Asked:
    """Take an object or a list, giving what comes of it at once; False if it does not end.

    ``breaks``: where this comes outside its strings it is broken off; nothing of JSON begins so.
    """
    plain = rf'[^"{{}}\[\]{re.escape(breaks[:1])}]'
    depth = 0
    while True:
        emit(source.some(plain))
        following = yield from source.peek()
        if not following:
            return False
        if following == '"':
            if not (yield from string(source, emit)):
                return False
            continue
        if breaks.startswith(following) and (yield from source.follows(breaks)):
            return False
        source.at += 1
        emit(following)
        depth += OPENED.get(following, 0)
        if following in "}]" and depth <= 0:
            return True


def text_of(quoted: str) -> str:
    """What a JSON string says; a character that no text has is replaced."""
    try:
        said = json.loads(quoted, strict=False)
    except ValueError:
        return quoted[1:-1]
    return SURROGATE.sub("\ufffd", str(said))


def _unescaped(source: Pieces) -> Taken:
    """Take an escape, both halves of a character that needs two."""
    escape = yield from _escape(source)
    if re.fullmatch(r"\\u[dD][89abAB]..", escape) and (yield from source.follows("\\u")):
        escape += yield from _escape(source)
    return text_of(f'"{escape}"')


def _escape(source: Pieces) -> Taken:
    source.at += 1
    letter = yield from source.peek()
    source.at += len(letter)
    escape = "\\" + letter
    while letter == "u" and len(escape) < HEX_DIGITS + 2:
        digit = yield from source.peek()
        if not re.fullmatch("[0-9a-fA-F]", digit):
            break
        source.at += 1
        escape += digit
    return escape


@lru_cache
def _run(characters: str) -> re.Pattern[str]:
    return re.compile(f"{characters}*")
