"""Where a prompt ends and what continues it begins, in tokens.

Behind a plain text the two are tokenised together and cut where the text alone would end: the rule
of evaluation harnesses, which leave white space at the end of a text to what follows it. A text
behind tokens, or behind a conversation, is tokenised by itself: so it has the tokens that the model
would have drawn for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from saccade_server.models.conversation import Message, PromptError
from saccade_server.models.rendered import RenderedPrompt
from saccade_server.models.tool_format import Tools


class Prompts(Protocol):
    """Makes prompts, see :class:`~saccade_server.models.prompt.PromptProcessor`."""

    def chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        tools: Tools | None = None,
    ) -> RenderedPrompt: ...

    def completion(
        self, prompt: str | Sequence[int], *, add_special_tokens: bool = True
    ) -> RenderedPrompt: ...

    def tokens(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def behind(self, text: str, *, typed: bool) -> list[int]: ...


@dataclass(frozen=True)
class Continuation:
    """Tokens behind a prompt. ``prompt`` is None if it is the one that all continuations share."""

    tokens: tuple[int, ...]
    prompt: RenderedPrompt | None = None


@dataclass(frozen=True)
class TextPrompt:
    """A plain text that texts continue; ``text`` is without the white space at its end."""

    prompts: Prompts
    text: str
    space: str
    prompt: RenderedPrompt
    add_special_tokens: bool
    trailing: int

    @property
    def spaced(self) -> RenderedPrompt | None:
        """The prompt with the white space at its end, for tokens behind it; None: it has none."""
        if not self.space:
            return None
        text, special = self.text + self.space, self.add_special_tokens
        whole = self.prompts.completion(text, add_special_tokens=special)
        return _cut(whole, len(whole.tokens) - self.trailing)

    @classmethod
    def of(cls, prompts: Prompts, text: str, add_special_tokens: bool) -> TextPrompt:
        """The prompt of a text, which is more than white space if it has any at its end.

        Raises:
            PromptError: it is empty.
        """
        bare = text.rstrip() or text
        trailing = _trailing(prompts) if add_special_tokens else 0
        whole = prompts.completion(bare, add_special_tokens=add_special_tokens)
        prompt = _cut(whole, len(whole.tokens) - trailing)
        return cls(prompts, bare, text[len(bare) :], prompt, add_special_tokens, trailing)

    def continued(self, text: str) -> Continuation:
        """The tokens of ``text`` behind it, none if they melt into the prompt's last.

        Raises:
            PromptError: the two have placeholders of images.
        """
        whole = self.prompts.completion(
            self.text + self.space + text, add_special_tokens=self.add_special_tokens
        )
        length, end = len(self.prompt.tokens), len(whole.tokens) - self.trailing
        tokens = whole.tokens[length:end]
        own = _cut(whole, length)
        return Continuation(tokens, None if own.tokens == self.prompt.tokens else own)


def lead(prompts: Prompts, variables: Mapping[str, Any] | None = None) -> str:
    """White space that the chat template writes between its beginning of an answer and the answer.

    Empty if there is none, or the template begins an answer otherwise than it shows one.
    """
    asked, said = Message("user", ("x",)), Message("assistant", ("x",))
    try:
        begun = prompts.chat([asked], variables=variables).text
        whole = prompts.chat([asked, said], continue_final_message=True, variables=variables).text
    except PromptError:
        return ""
    between = whole[len(begun) : -1]
    return between if whole == f"{begun}{between}x" and between.isspace() else ""


def _trailing(prompts: Prompts) -> int:
    """How many tokens the tokenizer puts behind every text."""
    bare, framed = prompts.tokens("x", add_special_tokens=False), prompts.tokens("x")
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return len(framed) - len(bare) - start
    return 0


def _cut(prompt: RenderedPrompt, length: int) -> RenderedPrompt:
    """Its first tokens, and their text."""
    if length == len(prompt.tokens):
        return prompt
    offsets = prompt.offsets[:length]
    end = max((end for _, end in offsets), default=0)
    return replace(prompt, tokens=prompt.tokens[:length], offsets=offsets, text=prompt.text[:end])
