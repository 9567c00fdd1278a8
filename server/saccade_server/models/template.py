"""A model's chat template: what it reads, what it shows, and rendering within limits.

Templates belong to the model, so they are trusted to mean well; what a request puts into them is
not. They run in transformers' sandbox, on threads of their own, and stop themselves: at every piece
of text they write, the time and the size of what is there are looked at. A loop that writes
nothing cannot be stopped, but it runs over what the request brought, which is bounded; whoever
waits for it gives up in time, and other threads go on.

What is brief is rendered where it is asked for, because a thread costs more than most renderings,
if the template was seen, as it was loaded, to take no time over as much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

from saccade_server.models.conversation import PromptError, arguments_text, strings
from saccade_server.models.tool_format import NoToolFormat, ToolFormat, Tools, find_format

RENDER_SECONDS = 10.0
LONGEST_RENDERING = 64 * 1024 * 1024
"""Characters; more than any body holds."""
THREADS = 4

BRIEF_CHARACTERS = 2048
BRIEF_MESSAGES = 16
QUICK_SECONDS = 0.005
"""Of a rendering of so many messages and characters, by a template that needs no thread for it."""

OURS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""Variables of every template that a request sets by other fields, or not at all."""

ASKING = frozenset({"defined", "undefined", "none", "default", "d"})
"""Tests and filters that ask whether a variable was given."""

CALL_ID = "abcdEFG12"
"""Nine letters and digits: the only ids of calls that Mistral's templates take."""

Conversation = list[dict[str, Any]]


class ChatTemplate:
    """A template as the tokenizer would render it.

    ``special`` are the tokenizer's own variables, such as ``bos_token``. With ``items`` the content
    of a message is a list of texts and images, otherwise one text.
    """

    def __init__(self, source: str, special: Mapping[str, Any], items: bool) -> None:
        self.source = source
        self.letters = frozenset(source)
        self.items = items
        self._special = {
            name: value if isinstance(value, list) else str(value)
            for name, value in special.items()
        }
        self._threads = ThreadPoolExecutor(THREADS, "saccade-template")
        self.quick = False
        """Rendering a brief conversation takes so little time that it may run on the event loop."""
        # Now, while nobody waits: each is asked for on the event loop.
        self.variables  # noqa: B018
        self.reads  # noqa: B018
        self.quick = self._is_quick()

    @property
    def fault(self) -> str | None:
        """Line and message of the template's first syntax error; None for a template without."""
        try:
            self._compiled()
        except TemplateSyntaxError as error:
            return f"line {error.lineno} ({error.message})"
        return None

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """The variables that a request may set, sorted."""
        try:
            environment = self._compiled().environment
        except TemplateError:  # every rendering will say so
            return ()
        tree = environment.parse(self.source)
        found = meta.find_undeclared_variables(tree) - _own_variables(tree)
        known = {*environment.globals, *self._special, *OURS}
        return tuple(sorted(name for name in found - known if not name.endswith("_token")))

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The texts in the template: what it writes, and what it looks for."""
        try:
            tree = self._compiled().environment.parse(self.source)
        except TemplateError:  # every rendering will say so
            return ()
        written = [data.data for data in tree.find_all(nodes.TemplateData)]
        constants = [constant.value for constant in tree.find_all(nodes.Const)]
        return (*written, *(value for value in constants if isinstance(value, str)))

    def closes_thoughts(self, marker: str) -> bool:
        """True if it writes an assistant's reasoning, and ``marker`` behind it."""
        asked = {"role": "user", "content": self._content("kq")}
        thought = {"role": "assistant", "content": self._content("wx"), **thoughts("kqthought")}
        try:
            rendered = self.render([asked, thought])
        except PromptError:
            return False
        _, _, behind = rendered.partition("kqthought")
        return behind.lstrip().startswith(marker)

    def render(
        self,
        conversation: Conversation,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        tools: Tools | None = None,
    ) -> str:
        """The prompt's text.

        Raises:
            PromptError: the template refuses the messages, or takes too long over them.
        """
        context = {
            "documents": None,
            **self._special,
            **(variables or {}),
            "tools": tools,
            "messages": conversation,
            "add_generation_prompt": add_generation_prompt,
        }
        # A number among the variables may be how often something is done.
        here = self.quick and not variables and not tools and _is_brief(conversation)
        try:
            write = self._write if here else self._write_apart
            return write(context, time.monotonic() + RENDER_SECONDS)
        except PromptError:
            raise
        except Exception as error:  # whatever a template does
            # What a template raises itself is a sentence of its author's; the rest is jinja's.
            reason = f": {error}" if type(error) is TemplateError else ""
            raise PromptError(f"the chat template refuses these messages{reason}") from error

    @cached_property
    def glues_texts(self) -> bool:
        """True if two texts of a message are written with nothing between them."""
        return self._shows([{"role": "user", "content": [_text("kq"), _text("wx")]}], "kqwx")

    @cached_property
    def glues_around_images(self) -> bool:
        """True if that happens to texts with an image between them: it is written elsewhere."""
        content = [_text("kq"), {"type": "image"}, _text("wx")]
        return self._shows([{"role": "user", "content": content}], "kqwx")

    @cached_property
    def arguments_of_calls(self) -> Callable[[object], object] | None:
        """The form in which it takes a call's arguments; None if it does not show calls at all."""
        forms: tuple[Callable[[object], object], ...] = (lambda value: value, arguments_text)
        return next((form for form in forms if self._shows_call(CALL_ID, form)), None)

    @cached_property
    def takes_text_of_calls(self) -> bool:
        """True if it shows arguments that are a text, as those that are no JSON object are."""
        return self._shows_call(CALL_ID, arguments_text)

    @cached_property
    def takes_any_id(self) -> bool:
        """True if calls may have any id; otherwise they have nine letters and digits."""
        form = self.arguments_of_calls
        return form is None or self._shows_call("call_1", form)

    @cached_property
    def tool_format(self) -> ToolFormat | NoToolFormat:
        """How the model calls tools; an error that says why it cannot."""

        def show(conversation: Conversation, tools: Tools | None) -> str:
            return self.render(conversation, add_generation_prompt=False, tools=tools)

        try:
            return find_format(show, self._content, self.arguments_of_calls, CALL_ID)
        except NoToolFormat as error:
            return error

    def _is_quick(self) -> bool:
        said = "kq " * (BRIEF_CHARACTERS // BRIEF_MESSAGES // 3)
        content = self._content(said)
        roles = ("user", "assistant") * (BRIEF_MESSAGES // 2)
        conversation = [{"role": role, "content": content} for role in roles[:-1]]
        began = [time.perf_counter()]
        for _ in range(4):  # the first compiles
            if not self._shows(conversation, said.strip()):
                return False
            began.append(time.perf_counter())
        return min(after - before for before, after in pairwise(began)) < QUICK_SECONDS

    def _shows_call(self, name: str, form: Callable[[object], object]) -> bool:
        function = {"name": "kqname", "arguments": form({"kqkey": "kqvalue"})}
        call = {"id": name, "type": "function", "function": function}
        result = {"name": "kqname", "tool_call_id": name, "content": self._content("kqresult")}
        conversation: Conversation = [
            {"role": "user", "content": self._content("kq")},
            {"role": "assistant", "content": self._content(""), "tool_calls": [call]},
            {"role": "tool", **result},
        ]
        return self._shows(conversation, "kqname", "kqkey", "kqvalue", "kqresult")

    @cached_property
    def reads(self) -> frozenset[str]:
        """Which of a message's ``name`` and ``reasoning_content`` it writes somewhere."""
        named = {"role": "user", "content": self._content("kq"), "name": "kqname"}
        thought = {"role": "assistant", "content": self._content("wx"), **thoughts("kqthought")}
        shown = {
            "name": self._shows([named], "kqname"),
            "reasoning_content": self._shows([{**named, "name": ""}, thought], "kqthought"),
        }
        return frozenset(name for name, found in shown.items() if found)

    def _shows(self, conversation: Conversation, *texts: str) -> bool:
        try:
            rendered = self.render(conversation)
        except PromptError:
            return False
        return all(text in rendered for text in texts)

    def _content(self, text: str) -> str | list[dict[str, str]]:
        return [_text(text)] if self.items else text

    def _compiled(self) -> Any:
        return _compile_jinja_template(self.source)  # transformers keeps it

    def _write_apart(self, context: dict[str, Any], deadline: float) -> str:
        """What :meth:`_write` makes in another thread, unless it takes too long."""
        work = self._threads.submit(self._write, context, deadline)
        try:
            return work.result(RENDER_SECONDS)
        except TimeoutError:
            work.cancel()
            raise _too_slow() from None

    def _write(self, context: dict[str, Any], deadline: float) -> str:
        pieces, length = [], 0
        for piece in self._compiled().generate(**context):
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST_RENDERING:
                raise PromptError("the chat template makes too long a prompt of these messages")
            if time.monotonic() > deadline:
                raise _too_slow()
        return "".join(pieces)


def _is_brief(conversation: Conversation) -> bool:
    brief = len(conversation) <= BRIEF_MESSAGES
    return brief and sum(map(len, strings(conversation))) <= BRIEF_CHARACTERS


def _own_variables(tree: nodes.Template) -> set[str]:
    """Variables that a template sets itself without asking first whether they were given."""
    assigned = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    asked = [test.node for test in tree.find_all(nodes.Test) if test.name in ASKING]
    asked += [use.node for use in tree.find_all(nodes.Filter) if use.name in ASKING and use.node]
    return assigned - {node.name for node in asked if isinstance(node, nodes.Name)}


def thoughts(text: str) -> dict[str, str]:
    """An assistant's reasoning, under every name that templates have for it."""
    return dict.fromkeys(("reasoning_content", "reasoning", "thinking"), text)


def join_texts(texts: Sequence[str]) -> str:
    """Several texts of one message as one: a line each, as vLLM has it."""
    return "\n".join(texts)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _too_slow() -> PromptError:
    return PromptError(
        f"the chat template took longer than {RENDER_SECONDS:g} seconds over these messages"
    )
