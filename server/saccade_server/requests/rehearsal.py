"""Interventions without a prompt: what any prompt would meet, and what only a prompt can tell.

They are compiled for prompts made up to have what the entries need (:meth:`Intervention.needs`):
images, texts, tokens. Where none of these prompts will do, no other would, and the error is the one
that a request would get. The prompts are short, and what different entries need lies apart in
them, so they are the most lenient there can be. What runs beside the prompt is counted too: a
server that computes one sequence at a time contrasts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from saccade_interventions.artifacts import Artifact
from saccade_interventions.base import PROBE_TEXT, ImageSize, Intervention
from saccade_interventions.errors import InterventionError
from saccade_interventions.model_facts import ModelFacts
from saccade_server.engine.limits import why_too_many
from saccade_server.engine.request import EngineInfo, SamplingParams
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.models.views import Cells
from saccade_server.requests.limits import check_group, room
from saccade_server.requests.prepared import prepare

IMAGE_TOKENS = 2
ONE_TOKEN = SamplingParams(max_tokens=1)


def check_for_some_prompt(
    interventions: Sequence[Intervention],
    model: ModelFacts,
    info: EngineInfo,
    artifacts: Callable[[str], Artifact | None],
) -> tuple[Intervention, ...]:
    """Refuse what no prompt could run, resolve the rest; reads artifacts: use it in a worker.

    Raises:
        InterventionError: as a request would get it.
        RequestError: likewise, where they need more than the engine has.
    """
    refusals: list[InterventionError] = []
    for prompt in _stand_ins(interventions, model, room(info)):
        try:
            prepared = prepare(prompt, interventions, model, artifacts)
        except InterventionError as error:
            refusals.append(error)
        else:
            check_group(prepared.request("", ONE_TOKEN), info, why_too_many)
            return prepared.interventions
    # A prompt without images is refused for that; the others say what is wrong besides.
    raise refusals[-1]


def depends_on_prompt(interventions: Sequence[Intervention]) -> list[str]:
    """What is still to be seen when there is a prompt, one sentence each."""
    found: list[str] = []
    for index, item in enumerate(interventions):
        needs, name = item.needs(), f"interventions[{index}]"
        if needs.images:
            found.append(f"{name} needs {needs.images} image{'s' if needs.images > 1 else ''}")
        if needs.texts or needs.tokens:
            found.append(f"{name} needs the texts and positions that it names")
        if needs.sizes:
            found.append(f"{name} needs images of the sizes that its regions are of")
    if len(interventions) > 1:
        found.append("whether entries meet at the same keys, and may")
    if interventions:
        found.append("whether the prompt's length suits them")
    return found


def _stand_ins(
    interventions: Sequence[Intervention], model: ModelFacts, room: int
) -> Iterator[RenderedPrompt]:
    """Prompts that have all that is needed, without images and with as few as will do."""
    needs = [item.needs() for item in interventions]
    texts = [text for each in needs for text in each.texts]
    # Every entry's texts twice as far apart as they need to be, and something outside of them.
    text = "\n\n".join([PROBE_TEXT, *dict.fromkeys(texts), "."])
    length = max((each.tokens for each in needs), default=0)
    # Of more images than there is room for the last are missing, as in any prompt.
    images = min(max((each.images for each in needs), default=0), room // IMAGE_TOKENS)
    sizes: dict[int, list[ImageSize]] = {}
    for size in (size for each in needs for size in each.sizes):
        sizes.setdefault(size.image, []).append(size)

    def prompt(count: int) -> RenderedPrompt:
        shown = [_image(at, sizes.get(at, [])) for at in range(count)]
        return _prompt(text, shown, length, room)

    if not images:
        yield prompt(0)
    if model.accepts_images:
        yield prompt(max(images, 1))
        yield prompt(images + 1)
    elif images:
        yield prompt(0)


def _image(number: int, needed: Sequence[ImageSize]) -> PreparedImage:
    """An image as large as it needs to be, whatever its pixels, which are two tokens side by side.

    Of sides that it must have in proportion, it has the longest.
    """
    exact = [(size.width, size.height) for size in needed if size.exact]
    width, height = max(exact, default=(1, 1))
    times = max((max(s.width / width, s.height / height) for s in needed), default=1)
    size = (width * math.ceil(times), height * math.ceil(times))
    start, pixel = 1 + number * (IMAGE_TOKENS + 1), np.zeros((1, 3, 1, 1), np.float32)
    cells = Cells(1, IMAGE_TOKENS)
    return PreparedImage("", start, IMAGE_TOKENS, pixel, None, cells=cells, size=size)


def _prompt(text: str, views: Sequence[PreparedImage], length: int, room: int) -> RenderedPrompt:
    """A token before and behind every image, then a token for each character."""
    start = views[-1].span[1] + 1 if views else 0
    offsets = [(0, 0)] * start + [(at, at + 1) for at in range(len(text))]
    offsets += [(len(text), len(text))] * (min(length + 1, room - 1) - len(offsets))
    return RenderedPrompt((0,) * len(offsets), text, tuple(offsets), tuple(views))
