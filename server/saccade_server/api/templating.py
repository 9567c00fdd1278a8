"""What a request says about the chat template: where the prompt ends, and the template's variables.

Variables are checked against those that the model's own template reads; one that it does not read
is refused. There is one exception: a client that asks a model not to think which never does asks
for nothing. Values are plain: they reach a sandbox, and what a loop or a product in there could
make of them is bounded here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from saccade_interventions import suggest
from saccade_interventions.errors import brief
from saccade_server.api.body.schemas import Templated
from saccade_server.api.errors import BadRequest, bounded, unsupported
from saccade_server.api.tools.offer import Offer, offer_of
from saccade_server.models.prompt import PromptProcessor, RenderedPrompt
from saccade_server.models.template import OURS

FIELD = "chat_template_kwargs"
THINKING = "enable_thinking"
SWITCHES = (THINKING, "thinking")
"""What templates call the variable that turns reasoning on and off."""
MOST_VARIABLES = 32
MOST_ITEMS = 64
LONGEST_TEXT = 1024
LARGEST_NUMBER = 10**8


@dataclass(frozen=True)
class Templating:
    """How a conversation becomes a prompt.

    ``paths`` says where in the request a variable is; ``ignored`` are those of what asks for
    nothing.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    offer: Offer | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``PromptProcessor.chat``."""
        return {
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
            "variables": self.variables,
            "tools": None if self.offer is None else self.offer.for_template,
        }

    def without_effect(self, prompt: RenderedPrompt) -> tuple[str, ...]:
        """Paths of the fields that changed nothing in the prompt that came of them."""
        return (*self.ignored, *(self.paths[name] for name in prompt.idle))


def templating(prompts: PromptProcessor, body: Templated) -> Templating:
    """Read and check the fields.

    Raises:
        BadRequest: they contradict one another, or name what the template does not have.
    """
    continued = bool(body.continue_final_message)
    if continued and body.add_generation_prompt:
        message = (
            "continue_final_message and add_generation_prompt exclude each other: a prompt ends "
            "either inside the last message or with the beginning of the next one."
        )
        raise BadRequest(message, param="continue_final_message")
    generation = not continued if body.add_generation_prompt is None else body.add_generation_prompt
    variables: dict[str, Any] = {}
    paths: dict[str, str] = {}
    ignored: list[str] = []
    for name, path, value in (*_given(body), *_thinking(prompts, body)):
        if name in variables:
            if variables[name] != value:
                message = f"{paths[name]} and {path} disagree; give one of them."
                raise BadRequest(message, param=path)
        elif name in prompts.template_variables:
            _check_value(value, path, switch=name == THINKING)
            variables[name], paths[name] = value, path
        elif name == THINKING and value is False and not prompts.knows_thinking:
            ignored.append(path)
        else:
            raise _unknown(prompts, name, path)
    offer = offer_of(prompts, body.tools, body.tool_choice)
    if body.tools and offer is None:
        ignored.append("tools")
    return Templating(generation, continued, variables, paths, tuple(ignored), offer)


def refuse_without_messages(body: Templated) -> None:
    """Refuse the fields where nothing goes through a template."""
    for name in Templated.model_fields:
        if getattr(body, name) not in (None, []):
            raise BadRequest(f"{name} is for messages.", param=name)


def _given(body: Templated) -> Iterator[tuple[str, str, Any]]:
    """Each variable, where it is in the request, and its value; null is not given."""
    own = body.chat_template_kwargs or {}
    if len(own) > MOST_VARIABLES:
        raise BadRequest(f"{FIELD} may have {MOST_VARIABLES} entries.", param=FIELD)
    for name, value in own.items():
        if value is not None:
            yield name, f"{FIELD}.{bounded(name, 64)}", value
    if body.enable_thinking is not None:
        yield THINKING, THINKING, body.enable_thinking


def _thinking(prompts: PromptProcessor, body: Templated) -> Iterator[tuple[str, str, Any]]:
    """The variables that say what the fields of other servers ask of a model that thinks.

    Raises:
        BadRequest: the template has none that says it.
    """
    known = prompts.template_variables
    switch = next((name for name in SWITCHES if name in known), None)
    effort, asked = body.reasoning_effort, body.thinking
    if asked is not None:
        if switch is not None:
            yield switch, "thinking", asked.type == "enabled"
        elif asked.type == "enabled" or prompts.knows_thinking:
            raise _no_switch("thinking", " or ".join(SWITCHES))
    if effort == "none" and switch is not None:
        yield switch, "reasoning_effort", False
    elif effort is not None and "reasoning_effort" in known:
        yield "reasoning_effort", "reasoning_effort", effort
    elif effort is not None and (effort != "none" or prompts.knows_thinking):
        raise _no_switch("reasoning_effort", "reasoning_effort")


def _no_switch(param: str, variable: str) -> BadRequest:
    message = (
        f"{param} is not supported by this model: its chat template has no variable {variable}; "
        f"what it has is said in {FIELD}."
    )
    return unsupported(param, message)


def _unknown(prompts: PromptProcessor, name: str, path: str) -> BadRequest:
    if name in OURS:
        message = f"The chat template's {brief(name)} comes from the request's other fields."
        return unsupported(path, message)
    known = ", ".join(prompts.template_variables)
    has = f"it has {known}." if known else "it has none that a request may set."
    hint = suggest.hint(name, prompts.template_variables, has)
    message = f"The chat template has no variable {brief(name)}; {hint}"
    return unsupported(path, message)


def _check_value(value: Any, path: str, switch: bool) -> None:
    # Templates ask whether a variable *is* false; "false" and 0 would leave it on without a word.
    quoted = isinstance(value, str) and value.strip().lower() in ("true", "false")
    if quoted or (switch and not isinstance(value, bool)):
        raise BadRequest("This is true or false, without quotes.", param=path)
    items = value if isinstance(value, list) else [value]
    if len(items) > MOST_ITEMS:
        raise BadRequest(f"A list may have {MOST_ITEMS} entries here.", param=path)
    for item in items:
        if isinstance(item, list | dict):
            message = "A template's variable is a text, a number, true, false, or a list of these."
            raise BadRequest(message, param=path)
        if isinstance(item, str) and len(item) > LONGEST_TEXT:
            raise BadRequest(f"A text may have {LONGEST_TEXT} characters here.", param=path)
        if isinstance(item, int | float) and abs(item) > LARGEST_NUMBER:
            raise BadRequest(f"A number may be {LARGEST_NUMBER} at most here.", param=path)
