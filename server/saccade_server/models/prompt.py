"""From messages to the prompt a model sees: template, tokens, offsets, images. No weights.

What a client typed never becomes a control token or an image in a chat (see sanitize.py). A raw
completion prompt is taken as it is: whoever sends one writes the template himself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from PIL.Image import Image
from transformers import AutoTokenizer

from saccade_server.models.base import eos_token_ids
from saccade_server.models.chat import ChatWriter, idle_variables
from saccade_server.models.conversation import Message, PromptError
from saccade_server.models.detokenizer import ByteDetokenizer, Detokenizer, TokenBytes, TokenData
from saccade_server.models.encoding import Encoded, TextEncoder
from saccade_server.models.family import load_config
from saccade_server.models.folder import UnsupportedModelError, in_short, named
from saccade_server.models.images import ImagePreprocessor
from saccade_server.models.placeholders import expanded
from saccade_server.models.prompt_files import chat_templates, generation_config
from saccade_server.models.reasoning import (
    Thought,
    find_markers,
    thought_begun,
    thought_continued,
)
from saccade_server.models.rendered import PreparedImage as PreparedImage
from saccade_server.models.rendered import RenderedPrompt as RenderedPrompt
from saccade_server.models.sanitize import Segment
from saccade_server.models.template import ChatTemplate
from saccade_server.models.tool_format import ToolFormat, Tools
from saccade_server.models.views import Pixels


class PromptProcessor:
    """The tokenizer, chat template and image processor of one model."""

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        *,
        template: str | None = None,
        tool_template: str | None = None,
        images: ImagePreprocessor | None = None,
        generation: Any = None,
    ) -> None:
        text = config.get_text_config()
        self.vocab_size: int = text.vocab_size
        self.eos_token_ids = eos_token_ids(generation, config, text)
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._images = images
        self._image_token: int | None = getattr(config, "image_token_id", None)
        self._encoder = TextEncoder(tokenizer)
        self._chat: ChatWriter | None = None
        if template is not None:
            special = tokenizer.special_tokens_map
            known, *others = (
                ChatTemplate(source, special, items=images is not None)
                for source in (template, tool_template)
                if source is not None
            )
            self._chat = ChatWriter(known, self._encoder, *others)
        self.markers = find_markers(self._chat.template, self._encoder) if self._chat else None
        """What stands around the model's reasoning; None if its template speaks of none."""
        self.special_token_ids = self._encoder.special_ids
        self.token_of = self._encoder.token_of
        self._bytes = TokenBytes(self._backend)
        self._data = TokenData(self._backend, self.special_token_ids)
        self._alone: dict[int, str] = {}
        self.tool_format  # noqa: B018 - now, while nobody waits
        self.max_token_chars = self._bytes.longest
        """Characters of the longest token; None if one token may stand for any length of text."""

    @classmethod
    def load(cls, model: str) -> PromptProcessor:
        """Load everything but the weights of a model folder (or hub name).

        Raises:
            UnsupportedModelError: something is missing or not supported; the message says what.
        """
        config = load_config(model)
        has_images = getattr(config, "vision_config", None) is not None
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            if not tokenizer.is_fast:
                raise ValueError("it is not a fast one")
            template, tool_template = chat_templates(model, tokenizer, has_images)
        except Exception as error:  # whatever its files make its code do
            raise UnsupportedModelError(
                f"{model}: has no tokenizer that can be read ({in_short(error)}); it needs a whole "
                "tokenizer.json, tokenizer_config.json and chat template of this model"
            ) from error
        images = ImagePreprocessor.load(model, config, tokenizer) if has_images else None
        generation = generation_config(model)
        with named(model):
            processor = cls(
                config,
                tokenizer,
                template=template,
                tool_template=tool_template,
                images=images,
                generation=generation,
            )
            processor._check_chats()
        return processor

    @property
    def accepts_images(self) -> bool:
        """True when prompts may have images."""
        return self._images is not None

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the model calls tools; None if it cannot."""
        found = self._chat.of_tools.tool_format if self._chat else None
        return found if isinstance(found, ToolFormat) else None

    @property
    def tools_refused(self) -> str | None:
        """Why the model calls no tools; None if it does."""
        if self._chat is None:
            return "it has no chat template"
        found = self._chat.of_tools.tool_format
        return None if isinstance(found, ToolFormat) else str(found)

    @cached_property
    def tool_tokens(self) -> Mapping[int, str]:
        """Special tokens in the markers of calls, which have no text unless it is asked for."""
        form = self.tool_format
        if form is None:
            return {}
        marked = form.begin + form.end + (form.between or "")
        named = (text for text in self._encoder.controls.special if text in marked)
        found = {self.special_token(text): text for text in named}
        return {token: text for token, text in found.items() if token is not None}

    @cached_property
    def textless_token_ids(self) -> frozenset[int]:
        """Special tokens but those around calls of tools, which are written as any text is."""
        return self.special_token_ids - self.tool_tokens.keys()

    @property
    def template_variables(self) -> tuple[str, ...]:
        """The variables of the chat template that a request may set."""
        return self._chat.template.variables if self._chat else ()

    @property
    def template_reads(self) -> frozenset[str]:
        """Which of a message's ``name`` and ``reasoning_content`` the chat template writes."""
        return self._chat.template.reads if self._chat else frozenset()

    @cached_property
    def fingerprint(self) -> str:
        """One hash of the tokenizer and the chat template: equal ones make equal prompts."""
        chat = self._chat
        used = (chat.template, chat.with_tools) if chat else ()
        sources = [template.source for template in used if template is not None]
        made_of = (self._backend.to_str(), *(sources or [""]))
        return "sha256:" + hashlib.sha256("\0".join(made_of).encode()).hexdigest()

    @property
    def quick(self) -> bool:
        """True if a brief prompt is made sooner than a thread is woken for it."""
        return self._chat is None or self._chat.template.quick

    @cached_property
    def knows_thinking(self) -> bool:
        """True if the model may think before it answers, by its template or its tokens."""
        source = self._chat.template.source if self._chat else ""
        return any("think" in text.lower() for text in (source, *self._encoder.controls.all))

    def reduction(self, width: int, height: int) -> int:
        """By how much the sides of an image may be divided before the model's processor sees it."""
        return self._images.reduction(width, height) if self._images else 1

    def prepare_image(self, image: Image) -> Pixels:
        """Preprocess one image, which takes long: chat() only inserts what comes of it.

        Raises:
            PromptError: the model takes no images, or not this one.
        """
        if self._images is None:
            raise PromptError("this model does not accept images")
        try:
            return self._images.prepare(image)
        except ValueError as error:
            size = f"{image.width}x{image.height}"
            message = f"the model's image processor refuses an image of {size} pixels"
            raise PromptError(message) from error

    def chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        tools: Tools | None = None,
    ) -> RenderedPrompt:
        """Render a conversation.

        Args:
            messages: in order.
            add_generation_prompt: end with the beginning of an assistant's turn.
            continue_final_message: end inside the last message, an assistant's, behind its text.
            variables: of the template, besides those that every template has.
            tools: that the model may call, in OpenAI's form; None or none: it may not.

        Raises:
            PromptError: no template, an unknown role, images a text model cannot see, nothing to
                continue, or a conversation the template refuses.
        """
        if self._chat is None:
            raise PromptError("this model has no chat template; use the completions endpoint")
        images = [image for message in messages for image in message.images]
        pixels = self._prepare(images)
        if continue_final_message:
            write = partial(self._chat.continued, messages, tools=tools or None)
        else:
            write = partial(
                self._chat.rendered, messages, add_generation_prompt, tools=tools or None
            )
        segments = write(variables)
        try:
            prompt = self._build(segments, self._adds_special(segments), pixels)
        except ValueError as error:
            raise PromptError(str(error)) from error
        idle = idle_variables(write, variables or {}, segments)
        if self.markers is None:
            return replace(prompt, idle=idle)
        thought = Thought.FREE
        if continue_final_message:
            thought = thought_continued(self.markers, messages[-1])
        elif add_generation_prompt:
            bare = partial(self._chat.rendered, messages, False, variables, tools or None)
            thought = thought_begun(self.markers, segments, bare)
        return replace(prompt, idle=idle, thought=thought)

    def completion(
        self,
        prompt: str | Sequence[int],
        images: Sequence[Image] = (),
        *,
        add_special_tokens: bool = True,
    ) -> RenderedPrompt:
        """Take a prompt as it is, one image placeholder in it for each image.

        ``add_special_tokens``: put those of the tokenizer, such as a BOS, around a text.

        Raises:
            PromptError: it is empty, has unknown token ids, or placeholders and images differ.
        """
        pixels = self._prepare(images)
        if isinstance(prompt, str):
            return self._build([Segment(prompt, False)], add_special_tokens, pixels)
        text, encoded = self._from_ids(prompt)
        return expanded(self._encoder, self._image_token, text, encoded, pixels)

    def detokenizer(
        self, prompt_tokens: Sequence[int] = (), shown: Mapping[int, str] | None = None
    ) -> Detokenizer | ByteDetokenizer:
        """Start turning the tokens generated behind a prompt into text.

        ``shown``: what to write for these tokens, special or not, instead of their own text.
        """
        if self._bytes.byte_level:
            return ByteDetokenizer(self._data, prompt_tokens, shown)
        special, fallback = self._encoder.special_ids, self._bytes.fallback
        alone = self._alone
        return Detokenizer(
            self._backend, special, prompt_tokens, fallback, alone=alone, shown=shown
        )

    def tokens(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text, whatever it is: an image's placeholder in it is one of them."""
        segments = [Segment(text, False)]
        return self._encoder.encode(segments, add_special_tokens=add_special_tokens).ids

    def behind(self, text: str, *, typed: bool) -> list[int]:
        """The tokens of a text that stands behind a prompt, by itself.

        ``typed``: no control token is read in it, as in what an assistant says.

        Raises:
            PromptError: a control token in it cannot be written as plain text.
        """
        try:
            return self._encoder.behind(text, typed=typed).ids
        except ValueError as error:
            raise PromptError(str(error)) from error

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included.

        Raises:
            PromptError: a token id is not in the vocabulary.
        """
        return self._from_ids(tokens)[0]

    def special_token(self, text: str) -> int | None:
        """The special token that ``text`` is the name of; such a token has no text in answers."""
        token = self._backend.token_to_id(text)
        return token if token in self.special_token_ids else None

    def token_name(self, token: int) -> str:
        """One token as the tokenizer's vocabulary writes it; empty for an id without a token."""
        return self._backend.id_to_token(token) or ""

    def token_text(self, token: int) -> tuple[str, bytes]:
        """One token by itself, for logprobs: readable text, and its exact bytes."""
        exact = self._bytes.of(token)
        return exact.decode(errors="replace"), exact

    def _prepare(self, images: Sequence[Image | Pixels]) -> list[Pixels]:
        return [
            image if isinstance(image, Pixels) else self.prepare_image(image) for image in images
        ]

    def _check_chats(self) -> None:
        """Refuse a template that nothing can be written with, and tokens of another model."""
        fault = self._chat.template.fault if self._chat else None
        if fault is not None:
            raise UnsupportedModelError(
                f"its chat template has an error in {fault}; correct it, or remove it to serve "
                "completions only"
            )
        try:
            tokens = self.chat([Message("user", ("Hello.",))]).tokens
        except PromptError:
            tokens = self.completion("Hello.").tokens  # there is no template, or it wants more
        if max(tokens) >= self.vocab_size:
            raise UnsupportedModelError(
                f"its tokenizer makes tokens that the model does not have (number {max(tokens)} "
                f"of {self.vocab_size}); they do not belong together"
            )

    def _adds_special(self, rendered: Sequence[Segment]) -> bool:
        """Whether the tokenizer adds its own, by the rules of processors and of tokenizers."""
        bos = self._tokenizer.bos_token
        begins = bool(rendered) and bos is not None and rendered[0].text.startswith(bos)
        return self.accepts_images and not begins

    def _build(
        self, segments: list[Segment], add_special_tokens: bool, images: Sequence[Pixels]
    ) -> RenderedPrompt:
        encoded = self._encoder.encode(segments, add_special_tokens=add_special_tokens)
        text = "".join(segment.text for segment in segments)
        return expanded(self._encoder, self._image_token, text, encoded, images)

    def _from_ids(self, ids: Sequence[int]) -> tuple[str, Encoded]:
        """Text and offsets of a prompt that came as token ids."""
        wrong = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise PromptError(f"token id {wrong} is not in the vocabulary of {self.vocab_size}")
        # Eager, or the text of a run of bytes would be at its end instead of at its characters.
        fallback, alone = self._bytes.fallback, self._alone
        stream = Detokenizer(self._backend, fallback=fallback, eager=True, alone=alone)
        text, offsets = "", []
        for token in ids:
            piece = stream.push(token)
            offsets.append((len(text), len(text) + len(piece)))
            text += piece
        return text + stream.flush(), Encoded(list(ids), offsets)
