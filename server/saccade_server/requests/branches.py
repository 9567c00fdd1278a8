"""The branchs that a plan asks for, made from the prompt and its images.

A branch has the prompt's tokens and images with something taken away or changed: the images are
deleted together with all that stands for their placeholders (whatever the template puts around
these stays), or
their keys are hidden from attention, or their pixels are noised. Where the request's edits act in
the branch, the plan is cut to the positions that are left.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from saccade_interventions.branches import bare_plan, deleted_plan, hidden_plan, same_plan
from saccade_interventions.context import Span
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.kept import Kept
from saccade_interventions.needs import Branch, Noise
from saccade_interventions.plan import Plan
from saccade_server.engine.request import Array, BranchInput, ImageInput
from saccade_server.engine.traces.data import DivergenceReading, Trace
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.requests.errors import RequestError
from saccade_server.requests.noise import Seed, digest_of, noised

MOST_BYTES = 64 * 2**20
"""Of noised images that are kept: one image is often asked about several times."""

_NOISED = Kept[Array](MOST_BYTES, lambda pixels: len(pixels.data))


def branches_of(plan: Plan | None, prompt: RenderedPrompt) -> tuple[BranchInput, ...]:
    """The branches of a compiled plan, for the engine.

    Raises:
        InterventionError: nothing of the prompt is left in a branch.
    """
    if plan is None:
        return ()
    return tuple(_branch(plan, branch, prompt) for branch in plan.needs.branches)


def traced_branch(
    plan: Plan | None, prompt: RenderedPrompt, readings: Sequence[DivergenceReading]
) -> BranchInput:
    """The prompt without its images, under the request's edits, read where ``readings`` compare.

    Raises:
        RequestError: nothing of the prompt is left, or a method runs its last row twice.
    """
    if plan is not None and plan.needs.last_row_twice:
        message = (
            "trace.vhd compares rows with those of a prompt without images, step by step, and one "
            "of the interventions runs the last row of the prompt twice"
        )
        raise RequestError(message, code="intervention_conflict", param="trace.vhd")
    tokens, extents = text_alone(prompt)
    if not tokens:
        message = "without its images the prompt is empty, and trace.vhd compares with that"
        raise RequestError(message, code="target_not_found", param="trace.vhd")
    gone = len(prompt.tokens) - len(tokens)
    shifted = (replace(r, rows=(r.rows[0] - gone, r.rows[1] - gone)) for r in readings)
    own = None if plan is None else deleted_plan(plan, extents)
    return BranchInput(tokens=tokens, plan=own, trace=Trace(tuple(shifted)))


def image_input(image: PreparedImage) -> ImageInput:
    """A view of an image in the words of the engine."""
    return ImageInput(image.digest, image.start, image.length, Array.pack(image.pixels), image.grid)


def _branch(plan: Plan, branch: Branch, prompt: RenderedPrompt) -> BranchInput:
    own = plan if branch.edited else None
    tokens, images = tuple(prompt.tokens), prompt.images
    if branch.images == "deleted":
        return _without_images(own, prompt, branch)
    if branch.images == "hidden":
        own = hidden_plan(own or bare_plan(plan), prompt.spans)
    elif own is not None:
        own = same_plan(own)
    seen = (
        _noised(images, branch.noise)
        if branch.noise is not None
        else tuple(map(image_input, images))
    )
    return BranchInput(tokens=tokens, images=seen, plan=own, measures=branch.measures)


def _without_images(plan: Plan | None, prompt: RenderedPrompt, branch: Branch) -> BranchInput:
    tokens, extents = text_alone(prompt)
    if not tokens:
        message = "without its images the prompt is empty, and the method compares with that"
        raise InterventionError(Code.TARGET_NOT_FOUND, message, f"interventions[{branch.source}]")
    own = None if plan is None else deleted_plan(plan, extents)
    return BranchInput(tokens=tokens, plan=own, measures=branch.measures)


def text_alone(prompt: RenderedPrompt) -> tuple[tuple[int, ...], list[Span]]:
    """The tokens that do not stand for images, and where the others are."""
    tokens = list(prompt.tokens)
    extents = [view.extent for view in prompt.images]
    for start, end in reversed(extents):
        del tokens[start:end]
    return tuple(tokens), extents


def _noised(images: Sequence[PreparedImage], noise: Noise) -> tuple[ImageInput, ...]:
    """Every view with noise of its own."""
    return tuple(
        _noised_input(image, noise.kept, (noise.seed, index)) for index, image in enumerate(images)
    )


def _noised_input(image: PreparedImage, share: float, seed: Seed) -> ImageInput:
    digest = digest_of(image, share, seed)
    pixels = _NOISED.get(digest, lambda: Array.pack(noised(image, share, seed).pixels))
    return ImageInput(digest, image.start, image.length, pixels, image.grid)
