"""Interventions without a prompt: what any prompt would meet, and what only a prompt can tell.

They are compiled for prompts made up to have what the entries need (:meth:`Intervention.needs`):
images, texts, tokens. Where none of these prompts will do, no other would, and the error is the one
that a request would get. The prompts are short, and what different entries need lies apart in
them, so they are the most lenient there can be. What runs beside the prompt is counted too: a
server that computes one sequence at a time contrasts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from saccade_interventions.base import PROBE_TEXT, Intervention
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import InterventionError
from saccade_server.api.errors import BadRequest
from saccade_server.api.profiles import ProfileError, worded
from saccade_server.api.rendering import Prepared
from saccade_server.api.sampling import check_group
from saccade_server.api.services import Services
from saccade_server.engine.limits import why_too_many
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.requests.branches import branches_of

IMAGE_TOKENS = 2


def check_for_some_prompt(
    services: Services, interventions: Sequence[Intervention]
) -> tuple[Intervention, ...]:
    """Refuse what no prompt could run, resolve the rest; reads artifacts: use it in a worker.

    Raises:
        InterventionError: as a request would get it.
        BadRequest: likewise, where they need more than the engine has.
    """
    refusals: list[InterventionError] = []
    for prompt in _stand_ins(services, interventions):
        context = services.context(prompt)
        try:
            plan = compile_plan(interventions, context)
        except InterventionError as error:
            refusals.append(error)
        else:
            rendered = _rendered(prompt)
            prepared = Prepared(rendered, plan, branches_of(plan, rendered))
            check_group(services, prepared, why=why_too_many)
            return tuple(item.resolved(context) for item in interventions)
    # A prompt without images is refused for that; the others say what is wrong besides.
    raise refusals[-1]


def check_profiles(services: Services) -> None:
    """Refuse profiles that the served model cannot run on any prompt.

    Raises:
        ProfileError: names the profile and what is wrong with it.
    """
    for profile in services.profiles.values():
        try:
            services.check_tested(profile.interventions)
            check_for_some_prompt(services, profile.interventions)
        except (InterventionError, BadRequest) as error:
            message = worded(profile.name, profile.entries, error)
            raise ProfileError(f"{profile.place}: {message}") from None


def depends_on_prompt(interventions: Sequence[Intervention]) -> list[str]:
    """What is still to be seen when there is a prompt, one sentence each."""
    found: list[str] = []
    for index, item in enumerate(interventions):
        needs, name = item.needs(), f"interventions[{index}]"
        if needs.images:
            found.append(f"{name} needs {needs.images} image{'s' if needs.images > 1 else ''}")
        if needs.texts or needs.tokens:
            found.append(f"{name} needs the texts and positions that it names")
    if len(interventions) > 1:
        found.append("whether entries meet at the same keys, and may")
    if interventions:
        found.append("whether the prompt's length suits them")
    return found


def _stand_ins(services: Services, interventions: Sequence[Intervention]) -> Iterator[Prompt]:
    """Prompts that have all that is needed, without images and with as few as will do."""
    needs = [item.needs() for item in interventions]
    texts = [text for each in needs for text in each.texts]
    # Every entry's texts twice as far apart as they need to be, and something outside of them.
    text = "\n\n".join([PROBE_TEXT, *dict.fromkeys(texts), "."])
    length = max((each.tokens for each in needs), default=0)
    images = max((each.images for each in needs), default=0)
    if not images:
        yield _prompt(text, 0, length, services.room)
    if services.prompts.accepts_images:
        yield _prompt(text, max(images, 1), length, services.room)
        yield _prompt(text, images + 1, length, services.room)
    elif images:
        yield _prompt(text, 0, length, services.room)


def _prompt(text: str, images: int, length: int, room: int) -> Prompt:
    """A token before and behind every image, then a token for each character."""
    stride = IMAGE_TOKENS + 1
    spans = tuple((1 + at * stride, (at + 1) * stride) for at in range(images))
    start = spans[-1][1] + 1 if spans else 0
    offsets = [(0, 0)] * start + [(at, at + 1) for at in range(len(text))]
    offsets += [(len(text), len(text))] * (min(length + 1, room - 1) - len(offsets))
    return Prompt(len(offsets), spans, text, tuple(offsets))


def _rendered(prompt: Prompt) -> RenderedPrompt:
    """The prompt as one of the models room, with images of one pixel."""
    pixel = np.zeros((1, 3, 1, 1), np.float32)
    images = tuple(
        PreparedImage("", start, end - start, pixel, None) for start, end in prompt.images
    )
    return RenderedPrompt((0,) * prompt.length, prompt.text, tuple(prompt.offsets), images)
