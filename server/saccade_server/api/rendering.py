"""From messages or a plain prompt to tokens, images and a plan; all checks, no engine.

Cheap checks come first, then images are fetched and decoded, then the prompt is rendered, then the
interventions are compiled for it. The CPU work runs in worker threads, that of images in others
than that of texts; where there is little of it, it is done at once, because a thread costs more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from saccade_interventions.base import Intervention
from saccade_server.api.access.keys import caller
from saccade_server.api.body.limits import check_conversation, check_tools
from saccade_server.api.body.messages import AnyPart, ChatMessage, ImagePart, RefusalPart
from saccade_server.api.errors import BadRequest, unsupported
from saccade_server.api.images.data_urls import is_data_url
from saccade_server.api.images.fetch import FetchBudget
from saccade_server.api.services import Services
from saccade_server.api.templating import Templating
from saccade_server.api.tool_history import converted
from saccade_server.models.conversation import Message, PromptError
from saccade_server.models.prompt import RenderedPrompt
from saccade_server.models.template import BRIEF_CHARACTERS, BRIEF_MESSAGES
from saccade_server.models.views import Pixels
from saccade_server.requests.limits import check_length, check_one_step
from saccade_server.requests.prepared import Prepared, prepare

BRIEF_PROMPT = BRIEF_CHARACTERS // 2
"""Characters; a template's form of them has roles, and the names of its fields, too."""
BRIEF_TOKENS = 256
SMALL_BYTES = 256 * 1024

UNREAD_MESSAGE_FIELDS = {
    "function_call": "function_call is not supported; send the call as tool_calls.",
    "audio": "audio is not supported.",
}


async def prepare_chat(
    services: Services,
    messages: Sequence[ChatMessage],
    interventions: Sequence[Intervention],
    how: Templating,
) -> Prepared:
    """Make the prompt of a conversation."""
    render, brief = await rendering(services, messages, how)

    def work() -> Prepared:
        return compiled(services, render(), interventions, "messages")

    return work() if brief and not interventions else await services.in_worker(work)


async def rendering(
    services: Services, messages: Sequence[ChatMessage], how: Templating
) -> tuple[Callable[[], RenderedPrompt], bool]:
    """Check a conversation and get its images; what comes back renders it, and is it brief?

    What is not brief is rendered in a worker.
    """
    _check_messages(services, messages)
    if how.offer is not None:
        check_tools(services, how.offer.for_template)
    pixels: dict[str, Pixels] = {}
    if any(_images(messages)):
        with services.fetcher.budget() as budget:
            pixels = await services.images.prepare(await _sources(services, messages, budget))

    def work() -> RenderedPrompt:
        converted = _convert(messages, pixels)
        with refusing("messages"):
            return services.prompts.chat(converted, **how.options)

    return work, _is_brief(services, messages, how) and _are_small(pixels.values())


def _is_brief(services: Services, messages: Sequence[ChatMessage], how: Templating) -> bool:
    plain = not any(message.tool_calls or message.role == "tool" for message in messages)
    if how.variables or how.offer or not plain or len(messages) > BRIEF_MESSAGES:
        return False
    said = sum(message.characters + len(message.name or "") for message in messages)
    return said <= BRIEF_PROMPT and services.prompts.quick


def _are_small(images: Iterable[Pixels]) -> bool:
    """True if to name what is in them takes no time."""
    return sum(view.pixels.nbytes for image in images for view in image.views) <= SMALL_BYTES


async def prepare_completion(
    services: Services,
    prompt: str | list[int],
    interventions: Sequence[Intervention],
    param: str,
    add_special_tokens: bool = True,
) -> Prepared:
    """Make a prompt of plain text or tokens; ``param`` is where the request has it."""

    def work() -> Prepared:
        if isinstance(prompt, list):
            check_tokens(prompt, services.engine.info.vocab_size, param)
        with refusing(param):
            rendered = services.prompts.completion(prompt, add_special_tokens=add_special_tokens)
        return compiled(services, rendered, interventions, param)

    most = BRIEF_PROMPT if isinstance(prompt, str) else BRIEF_TOKENS
    brief = len(prompt) <= most and services.prompts.quick
    return work() if brief and not interventions else await services.in_worker(work)


def check_tokens(tokens: Sequence[int], vocabulary: int, param: str) -> None:
    """Refuse token ids that the model does not have."""
    if tokens and max(tokens) >= vocabulary:
        raise BadRequest(f"Token ids go from 0 to {vocabulary - 1}.", param=param)


@contextmanager
def refusing(param: str) -> Iterator[None]:
    """Say where the prompt is that cannot be built."""
    try:
        yield
    except PromptError as error:
        raise BadRequest(str(error), code="invalid_prompt", param=param) from None


def _check_messages(services: Services, messages: Sequence[ChatMessage]) -> None:
    settings = services.settings
    check_conversation(services, messages)
    for at, item in enumerate(messages):
        for name, message in UNREAD_MESSAGE_FIELDS.items():
            if (item.model_extra or {}).get(name):
                raise unsupported(f"messages[{at}].{name}", message)
    found = list(_images(messages))
    for path, role, _ in found:
        if role != "user":
            raise BadRequest("Only user messages may hold images.", param=path)
        if not services.prompts.accepts_images:
            message = "The model takes no images."
            raise BadRequest(message, code="images_not_supported", param=path)
    if len(found) > settings.max_images:
        message = f"A request may have {settings.max_images} images."
        raise BadRequest(message, code="too_many_images", param="messages")
    services.rates.take(caller.get(), images=len(found))


def _images(messages: Sequence[ChatMessage]) -> Iterator[tuple[str, str, str]]:
    """Yield path, role and URL of every image."""
    for at, message in enumerate(messages):
        for spot, part in enumerate(message.parts):
            if isinstance(part, ImagePart):
                yield _path(at, spot), message.role, part.image_url.url


def _path(message: int, part: int) -> str:
    return f"messages[{message}].content[{part}].image_url"


async def _sources(
    services: Services, messages: Sequence[ChatMessage], budget: FetchBudget
) -> dict[str, str | bytes]:
    """Data URLs, and the files behind other URLs, keyed by path."""
    urls = {path: url for path, _, url in _images(messages)}
    wanted = {path: url for path, url in urls.items() if not is_data_url(url)}
    fetch = services.fetcher.fetch
    try:
        async with asyncio.TaskGroup() as group:
            files = {
                path: group.create_task(fetch(url, path, budget)) for path, url in wanted.items()
            }
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return urls | {path: task.result() for path, task in files.items()}


def _convert(messages: Sequence[ChatMessage], pixels: Mapping[str, Pixels]) -> list[Message]:
    """Put everything into the words of the models room."""

    def part_of(part: AnyPart, path: str) -> str | Pixels:
        if isinstance(part, ImagePart):
            return pixels[path]
        return part.refusal if isinstance(part, RefusalPart) else part.text

    made = []
    for at, message in enumerate(messages):
        parts = tuple(part_of(part, _path(at, spot)) for spot, part in enumerate(message.parts))
        made.append(converted(message, parts))
    return made


def compiled(
    services: Services, prompt: RenderedPrompt, interventions: Sequence[Intervention], param: str
) -> Prepared:
    """A prompt under interventions; ``param`` is where the request has it. Reads artifacts.

    Raises:
        ApiError, RequestError, InterventionError: it cannot be served.
    """
    info, length = services.engine.info, len(prompt.tokens)
    if not length:
        raise BadRequest("The prompt is empty.", code="invalid_prompt", param=param)
    check_length(length, info, param)
    facts, artifacts = services.facts, services.artifacts.finder()
    prepared = prepare(prompt, interventions, facts, artifacts)
    check_one_step(prepared, info)
    return prepared
