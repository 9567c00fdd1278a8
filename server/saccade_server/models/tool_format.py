r"""How a model calls tools, found in what its own chat template writes for a call.

A template is given a message that calls, and one that says a word instead; what differs is the
call. It is read and written where it is a JSON object of a name and arguments, as in

    <tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>    Hermes, Qwen
    {"name": "now", "parameters": {"zone": "UTC"}}                               Llama 3

Whatever stands around the object and between two of them is the format's; no model is known by
its name. Any other form is refused with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from saccade_server.models.conversation import PromptError

Tools = list[dict[str, Any]]
"""In the form of OpenAI's API, as templates know it."""

NAME, OTHER = "kqname", "wxname"
ARGUMENTS = {"kqkey": "kqvalue"}
SAID = "kqsaid"
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "kqdescription",
        "parameters": {
            "type": "object",
            "properties": {"kqkey": {"type": "string", "description": "kqmeaning"}},
            "required": ["kqkey"],
        },
    },
}
SHOWN = (NAME, "kqdescription", "kqkey", "kqmeaning")
"""What a template that knows tools writes of :data:`TOOL`."""


class NoToolFormat(ValueError):
    """No tools for this model; the message says why, and may be shown to a client."""


@dataclass(frozen=True)
class ToolFormat:
    """What calls are written as: ``lead``, their JSON objects with ``between`` two, ``trail``.

    ``between`` is None if the template writes one call a message. ``parts`` is what stands in an
    object around its name and its arguments, in that order if ``name_first``.
    """

    lead: str
    trail: str
    between: str | None
    parts: tuple[str, str, str]
    name_first: bool
    name_key: str
    arguments_key: str

    @property
    def begin(self) -> str:
        """The marker before calls, without the white space around it; empty: there is none."""
        return self.lead.strip()

    @property
    def end(self) -> str:
        """The marker behind calls, likewise."""
        return self.trail.strip()

    @property
    def separator(self) -> str:
        """What tells two objects between one pair of markers apart, without white space."""
        inside = (self.between or "").strip()
        return "" if self.end and inside.startswith(self.end) else inside

    @property
    def apart(self) -> str | None:
        """What stands between a call with all around it and the next; None: they share it."""
        between = self.between
        if between is None or not between.startswith(self.trail):
            return None
        rest = between[len(self.trail) :]
        return rest[: len(rest) - len(self.lead)] if rest.endswith(self.lead) else None

    def around(self, name: str) -> tuple[str, str]:
        """What stands in the object of a call before its arguments, and behind them."""
        first, second, third = self.parts
        if self.name_first:
            return first + name + second, third
        return first, second + name + third

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        """Names with the JSON texts of their arguments, as the template writes such calls."""
        objects = [arguments.join(self.around(name)) for name, arguments in calls]
        return self.lead + (self.between or "").join(objects) + self.trail


Show = Callable[[list[dict[str, Any]], Tools | None], str]
"""What a template writes for messages and tools.

Raises:
    PromptError: it refuses them.
"""


def find_format(
    show: Show, content: Callable[[str], Any], form: Callable[[object], object] | None, call_id: str
) -> ToolFormat:
    """The format of a template's calls.

    Args:
        show: the template.
        content: a text in the form in which it takes a message's content.
        form: arguments in the form in which it takes them; None if it shows no calls.
        call_id: an id of a call that it takes.

    Raises:
        NoToolFormat: it has none, or none that is read here.
    """
    user = {"role": "user", "content": content("kq")}
    if not _shows_tools(show, user):
        raise NoToolFormat("its chat template does not write tools into a prompt")
    if form is None:
        raise NoToolFormat("its chat template does not write calls of tools")

    def turn(*names: str) -> str:
        """What it writes for a turn that calls these."""
        calls = [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": form(dict(ARGUMENTS))},
            }
            for name in names
        ]
        called = {"role": "assistant", "content": content(""), "tool_calls": calls}
        said = {"role": "assistant", "content": content(SAID)}
        # White space in front is what would stand behind a text, even an empty one.
        return _difference(show([user, called], [TOOL]), show([user, said], [TOOL])).lstrip()

    try:
        one = turn(NAME)
    except PromptError:
        raise NoToolFormat("its chat template refuses a call of a tool") from None
    try:
        two: str | None = turn(NAME, OTHER)
    except PromptError:  # one a message is all it takes, as Llama 3's
        two = None
    found = _read(one, two)
    if found is None or call_id in one.replace(NAME, ""):
        raise NoToolFormat(
            "its chat template writes calls in a form that is not read here, which is a JSON "
            "object of a name and arguments"
        )
    return found


def _shows_tools(show: Show, user: dict[str, Any]) -> bool:
    try:
        with_tools, without = show([user], [TOOL]), show([user], None)
    except PromptError:
        return False
    return all(text in with_tools and text not in without for text in SHOWN)


def _difference(text: str, other: str) -> str:
    """What stands in ``text`` between its common beginning and end with ``other``."""
    start = _common(text, other)
    rest, other = text[start:], other[start:]
    return rest[: len(rest) - _common(rest[::-1], other[::-1])]


def _common(text: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(text), len(other)))


def _read(one: str, two: str | None) -> ToolFormat | None:
    """The format in which ``one`` is the probe's call and ``two`` are two of them."""
    first = _object(one, 0, NAME)
    if first is None:
        return None
    start, stop, name_key, arguments_key = first
    text = one[start:stop]
    name_at, arguments_at = text.find(NAME), text.find("{", 1)
    arguments, length = _decoded(text, arguments_at) or (None, 0)
    if arguments != ARGUMENTS:
        return None
    (a, b), (c, d) = sorted([(name_at, name_at + len(NAME)), (arguments_at, length)])
    found = ToolFormat(
        lead=one[:start],
        trail=one[stop:],
        between=None if two is None else _between(two),
        parts=(text[:a], text[b:c], text[d:]),
        name_first=name_at < arguments_at,
        name_key=name_key,
        arguments_key=arguments_key,
    )
    written = text[arguments_at:length]
    calls = [(NAME, written), (OTHER, written)]
    fits = found.write(calls[:1]) == one and (two is None or found.write(calls) == two)
    # An end without a beginning could not be told from what is said.
    return found if fits and (found.begin or not found.end) else None


def _between(two: str) -> str | None:
    first = _object(two, 0, NAME)
    second = _object(two, first[1], OTHER) if first else None
    return two[first[1] : second[0]] if first and second else None


def _object(text: str, start: int, name: str) -> tuple[int, int, str, str] | None:
    """Where the first JSON object of just a name and arguments stands, and its keys for them."""
    at = text.find("{", start)
    while at >= 0:
        value, stop = _decoded(text, at) or (None, 0)
        if isinstance(value, dict) and len(value) == 2:
            keys = {str(item): key for key, item in value.items()}
            if keys.keys() == {name, str(ARGUMENTS)}:
                return at, stop, keys[name], keys[str(ARGUMENTS)]
        at = text.find("{", at + 1)
    return None


def _decoded(text: str, at: int) -> tuple[Any, int] | None:
    try:
        return json.JSONDecoder().raw_decode(text, at) if at >= 0 else None
    except ValueError:
        return None
