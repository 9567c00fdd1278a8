"""From a conversation to a rendered prompt in which what was typed is told from what is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saccade_server.models.conversation import (
    Message,
    PromptError,
    ToolCall,
    all_texts,
    as_text_turns,
    has_tools,
    json_text,
    role_of,
    strings,
    with_short_ids,
    with_tool_names,
)
from saccade_server.models.encoding import TextEncoder
from saccade_server.models.sanitize import Marker, Segment
from saccade_server.models.template import ChatTemplate, join_texts, thoughts
from saccade_server.models.tool_format import Tools

Item = dict[str, str]


@dataclass(frozen=True)
class ChatWriter:
    """Templates, and the tokens that nobody may type into them.

    ``with_tools`` is the template of a conversation that offers tools; None: the same as of others.
    """

    template: ChatTemplate
    encoder: TextEncoder
    with_tools: ChatTemplate | None = None

    @property
    def of_tools(self) -> ChatTemplate:
        """The template of a conversation that offers tools."""
        return self.with_tools or self.template

    def rendered(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
        tools: Tools | None = None,
    ) -> list[Segment]:
        """The whole conversation; ``tools`` are what a client typed, like its messages.

        Raises:
            PromptError: there is none, a role is unknown, or the template refuses it.
        """
        page = self._page(messages, variables, tools)
        return page.marker.split(page.write(page.conversation(), add_generation_prompt))

    def continued(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] | None = None,
        tools: Tools | None = None,
    ) -> list[Segment]:
        """The conversation up to the end of the last message's text, by transformers' rule.

        White space at the end of the text stays where the template leaves it.

        Raises:
            PromptError: the last message is not an assistant's text, the template does not show
                it, or refuses the conversation.
        """
        last = messages[-1] if messages else None
        if last is None or last.role != "assistant" or last.calls or not last.has_text:
            message = "continue_final_message needs a last message that is an assistant's text"
            raise PromptError(message)
        page = self._page(messages, variables, tools)
        conversation, place = page.conversation(), page.marker.place()
        content = conversation[-1]["content"]
        if isinstance(content, str):
            conversation[-1]["content"] = f"{content}{place} "
        else:
            item = next(item for item in reversed(content) if item["type"] == "text")
            item["text"] += f"{place} "
        rendered = page.write(conversation, add_generation_prompt=False)
        head, found, tail = rendered.rpartition(place)
        if not found:
            message = "the chat template does not show the last message, so nothing can continue it"
            raise PromptError(message)
        head = head.replace(place, "")
        return page.marker.split(head if tail.startswith(" ") else head.rstrip())

    def _page(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] | None,
        tools: Tools | None,
    ) -> _Page:
        if not messages:
            raise PromptError("a conversation has at least one message")
        for message in messages:
            role_of(message)
        template = self.of_tools if tools else self.template
        if has_tools(messages):
            if template.arguments_of_calls is None:
                messages = as_text_turns(messages)
            else:
                messages = with_tool_names(messages)
                if not template.takes_any_id:
                    messages = with_short_ids(messages)
        given = variables or {}
        taken = [*all_texts(messages), *strings(given), *strings(tools), template.letters]
        marker = self.encoder.controls.marker(taken)
        return _Page(template, self.encoder, marker, messages, given, tools)


@dataclass(frozen=True)
class _Page:
    """One conversation on its way through the template."""

    template: ChatTemplate
    encoder: TextEncoder
    marker: Marker
    messages: Sequence[Message]
    variables: Mapping[str, Any]
    tools: Tools | None

    def write(self, conversation: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        variables, tools = self._marked(self.variables), self._marked(self.tools)
        return self.template.render(conversation, add_generation_prompt, variables, tools)

    def conversation(self) -> list[dict[str, Any]]:
        """Messages in the form templates expect, control tokens in their texts marked."""
        return [self._message(message) for message in self.messages]

    def _message(self, message: Message) -> dict[str, Any]:
        own = message.role == "assistant"
        made = {"role": role_of(message), "content": self._content(message, own)}
        if message.name is not None:
            made["name"] = self._mark(message.name)
        if message.reasoning is not None and own:
            made |= thoughts(self._mark(message.reasoning, own))
        if message.calls:
            made["tool_calls"] = [self._call(call) for call in message.calls]
        if message.call_id is not None:
            made["tool_call_id"] = self._mark(message.call_id)
        return made

    def _content(self, message: Message, own: bool) -> Any:
        """A list of items for models with images, one string for the others."""
        is_last = message is self.messages[-1]
        items: list[Item] = []
        for index, part in enumerate(message.parts):
            if isinstance(part, str):
                more_follows = not is_last or index + 1 < len(message.parts)
                items.append({"type": "text", "text": self._mark(part, own, more_follows)})
            else:
                items.append({"type": "image"})
        if not self.template.items:
            return join_texts([item["text"] for item in items])
        return _separated(items, self.template)

    def _call(self, call: ToolCall) -> dict[str, Any]:
        form = self.template.arguments_of_calls
        arguments = self._marked(call.arguments, own=True)
        if isinstance(arguments, str) and not self.template.takes_text_of_calls:
            raise PromptError(
                f"the chat template needs arguments that are a JSON object; those of the call of "
                f"{json_text(call.name)} are not"
            )
        function = {
            "name": self._mark(call.name, own=True),
            "arguments": form(arguments) if form else arguments,
        }
        made = {"type": "function", "function": function}
        return made if call.id is None else {"id": self._mark(call.id), **made}

    def _marked(self, value: Any, own: bool = False) -> Any:
        """A JSON value with every string of it marked."""
        if isinstance(value, str):
            return self._mark(value, own)
        if isinstance(value, Mapping):
            return {self._mark(k, own): self._marked(v, own) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(item, own) for item in value]
        return value

    def _mark(self, text: str, own: bool = False, more_follows: bool = True) -> str:
        marked = self.marker.mark(text, by_assistant=own, more_follows=more_follows)
        if self.encoder.hides_controls(marked, by_assistant=own):
            raise PromptError("a text turns into control tokens when it is normalised")
        return marked


def _separated(items: list[Item], template: ChatTemplate) -> list[Item]:
    """The items of a message with a line feed between texts that the template would glue."""
    made: list[Item] = []
    for item in items:
        neighbour = made[-1] if made and made[-1]["type"] == item["type"] == "text" else None
        if neighbour is not None and template.glues_texts:
            neighbour["text"] = join_texts([neighbour["text"], item["text"]])
        else:
            made.append(dict(item))
    texts = [item for item in made if item["type"] == "text"]
    if len(texts) > 1 and template.glues_around_images:
        for item in texts[:-1]:
            item["text"] = join_texts([item["text"], ""])
    return made


def idle_variables(
    write: Callable[[Mapping[str, Any]], list[Segment]],
    variables: Mapping[str, Any],
    written: list[Segment],
) -> tuple[str, ...]:
    """The variables that could as well be others: the conversation reads the same.

    So is ``enable_thinking`` where the template asks for it only as it begins an answer, and the
    prompt continues one.

    Args:
        write: the conversation with these variables.
        variables: as they were given.
        written: the conversation with them.
    """

    def stays(name: str) -> bool:
        try:
            return write({**variables, name: _another(variables[name])}) == written
        except PromptError:
            return False

    return tuple(name for name in variables if stays(name))


def _another(value: Any) -> Any:
    """A value of the same kind that is not the same."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, ""]
    return f"{value}." if isinstance(value, str) else value + 1
