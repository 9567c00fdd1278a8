"""Tells calls of tools from the rest of an answer's text, as the text comes.

A call begins with the marker of the model's format; where the format has none, with the answer. It
is one once its name is known and its arguments begin, and from there on they are handed out as
they come, as the model writes them. What turns out not to be a call stays text, all of it.

White space next to calls is not text. Arguments that are a JSON text in quotes are handed out
without these; a call that says none has ``{}``. An object of more than a name and arguments is a
call if all the rest is plain values, which are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from saccade_server.api.ids import new_id
from saccade_server.api.reading import CallDelta, Said
from saccade_server.api.tools.json_reading import (
    ANYTHING,
    SCALAR,
    SPACE,
    Asked,
    Found,
    Pieces,
    Waiting,
    contents,
    string,
    text_of,
    value,
)
from saccade_server.api.tools.prose import Prose
from saccade_server.models.tool_format import ToolFormat

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What a call may be of; a tool of a request has no dot, but a model may write one."""
ARGUMENTS_KEYS = ("arguments", "parameters")
"""Whichever of the two a template has, models know both."""
LETTERS_OF_JSON = frozenset('{}[]",: \t\r\n0123456789+-.truefalsn')
"""What a JSON text may consist of outside its strings."""
SEPARATOR = ";"
"""Between the calls of a model whose template shows one at a time: Llama 3's."""
ID_DIGITS = 24


class ToolReader:
    """The reader of one answer; ``names`` are the tools that it may call.

    A call between markers is one whatever its name: the client knows best what to say of a tool
    that it does not have. Without markers only a call of one of ``names`` is.
    """

    reasoned = 0.0

    def __init__(
        self, form: ToolFormat, names: Collection[str], shown: Mapping[int, str] | None = None
    ) -> None:
        self.shown = shown or {}
        self._begin, self._end = form.begin, form.end
        self._separator = form.separator or ("" if form.begin else SEPARATOR)
        self._breaks = "" if form.end[:1] in LETTERS_OF_JSON else form.end
        self._name_key = form.name_key
        self._arguments_keys = frozenset({form.arguments_key, *ARGUMENTS_KEYS})
        self._names = frozenset(names)
        self._source = Pieces()
        self._text = Prose()
        self._calls: list[CallDelta] = []
        self._index = -1
        self._parser = self._parse()

    @property
    def has_called(self) -> bool:
        """Some tool has been called."""
        return self._index >= 0

    def read(self, text: str, last: bool) -> Said:
        """What the next piece of text adds."""
        self._source.add(text, last)
        next(self._parser, None)
        if last:
            self._text.end()
        calls, self._calls = tuple(self._calls), []
        return Said(self._text.take(), calls=calls)

    def _parse(self) -> Waiting:
        source = self._source
        if self._begin:
            while (yield from self._to_marker()):
                yield from source.take(self._begin)
                yield from self._objects()
        else:
            yield from source.run(SPACE)
            yield from self._objects()
        while (yield from source.peek()):  # nothing can be a call any more
            source.some(ANYTHING)
            self._say()

    def _to_marker(self) -> Asked:
        """Say the text before the next marker; False if there is none."""
        source, begin = self._source, self._begin
        plain = rf"[^{re.escape(begin[0])}]"
        while True:
            source.some(plain)
            self._say()
            if not (yield from source.peek()):
                return False
            if (yield from source.follows(begin)):
                return True
            source.at += 1

    def _objects(self) -> Waiting:
        """Take calls one behind the other, and the marker behind them; the rest is text."""
        source = self._source
        while (yield from self._object()):
            source.forget()
            yield from source.run(SPACE)
            if self._end and (yield from source.take_begun(self._end)):
                source.forget()
                return
            if not self._separator:
                break
            if not (yield from source.take(self._separator)) and self._end:
                break
            yield from source.run(SPACE)
        self._say()

    def _object(self) -> Asked:
        """Take a call's object; if that fails, what is taken behind the mark is no part of one."""
        source, call = self._source, _Call()
        yield from source.run(SPACE)
        if not (yield from source.take("{")):
            return False
        more = True
        while more:
            yield from source.run(SPACE)
            if not (yield from self._pair(call)):
                return False
            yield from source.run(SPACE)
            more = yield from source.take(",")
        if not (yield from source.follows("}")) or not (call.opened or self._open(call)):
            return False
        source.at += 1
        if not call.says:
            self._emit("{}")
        return True

    def _pair(self, call: _Call) -> Asked:
        """Take a key and its value; False if there is none, or it is not one of a call's."""
        source = self._source
        key = yield from self._quoted()
        yield from source.run(SPACE)
        if key is None or not (yield from source.take(":")):
            return False
        yield from source.run(SPACE)
        following = yield from source.peek()
        if key in self._arguments_keys and not call.opened:
            if following and following in '{"':
                return (yield from self._arguments(call))
            return (yield from source.take("null"))
        if following != '"':
            return bool((yield from source.run(SCALAR)))
        said = yield from self._quoted()
        if key == self._name_key and call.name is None:
            call.name = said
        return said is not None

    def _quoted(self) -> Found:
        """Take a string and return what it says; None if there is none."""
        found: list[str] = []
        if (yield from self._source.peek()) != '"':
            return None
        whole = yield from string(self._source, found.append)
        return text_of("".join(found)) if whole else None

    def _arguments(self, call: _Call) -> Asked:
        """Take arguments; they are handed out as they come if the name is known already."""
        source = self._source
        if call.name is not None and not self._open(call):
            return False

        def emit(piece: str) -> None:
            call.says = call.says or bool(piece)
            if call.opened:
                self._emit(piece)
            else:
                call.arguments.append(piece)

        if (yield from source.peek()) == '"':
            whole = yield from contents(source, emit)
        else:
            whole = yield from value(source, emit, self._breaks)
        if call.opened and not whole:
            yield from source.take(self._breaks)
        if call.opened:
            source.forget()
        return whole

    def _open(self, call: _Call) -> bool:
        """Begin to hand a call out, with the arguments that are known; False if it is none."""
        name = call.name or ""
        if not NAME.fullmatch(name) or not (self._begin or name in self._names):
            return False
        call.opened = True
        self._index += 1
        arguments = "".join(call.arguments)
        self._calls.append(CallDelta(self._index, call_id(), name, arguments))
        self._text.interrupted()
        self._source.forget()
        return True

    def _emit(self, arguments: str) -> None:
        """Hand out a piece of the last call's arguments."""
        self._source.forget()
        last = self._calls[-1] if self._calls else CallDelta(self._index)
        joined = replace(last, arguments=last.arguments + arguments)
        self._calls[-1:] = [joined] if joined.id or joined.arguments else []

    def _say(self) -> None:
        """Say what is taken behind the mark."""
        self._text.add(self._source.marked)
        self._source.forget()


@dataclass
class _Call:
    """The object of a call as far as it is read; ``arguments`` are those before its name."""

    name: str | None = None
    arguments: list[str] = field(default_factory=list)
    opened: bool = False
    says: bool = False


def call_id() -> str:
    """A name for a call, unlike any other."""
    return "call_" + new_id()[:ID_DIGITS]
