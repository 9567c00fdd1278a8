"""What a method may know when it compiles: the model's sizes and the prompt's spans."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.artifacts import Artifact, ArtifactError, check_for
from saccade_interventions.builder import PlanBuilder
from saccade_interventions.errors import Code, InterventionError, brief
from saccade_interventions.image_views import ImageView
from saccade_interventions.model_facts import ModelFacts

MOST_OCCURRENCES = 4096
"""Of one text in a prompt; a text that is everywhere marks nothing."""

Span = tuple[int, int]
"""Token positions, end exclusive."""


@dataclass(frozen=True)
class Prompt:
    """A rendered, tokenised prompt with its images expanded.

    ``text`` is the rendered prompt; ``offsets[i]`` is the (start, end) range of characters that
    token i covers, an empty range for the image tokens after the first of an image. ``images`` are
    the spans of images' features, in order. An image shown in several views has several; then
    ``image_numbers`` says, of each span, which image of the prompt it belongs to.
    """

    length: int
    images: tuple[Span, ...] = ()
    text: str = ""
    offsets: Sequence[tuple[int, int]] = field(default=(), repr=False)
    image_numbers: tuple[int, ...] = ()  # none: every span is an image
    views: tuple[ImageView, ...] = ()

    @property
    def spans_by_image(self) -> tuple[tuple[Span, ...], ...]:
        """The spans of each image."""
        numbers = self.image_numbers or tuple(range(len(self.images)))
        found: list[list[Span]] = [[] for _ in range(max(numbers, default=-1) + 1)]
        for span, number in zip(self.images, numbers, strict=True):
            found[number].append(span)
        return tuple(map(tuple, found))

    @property
    def question_start(self) -> int:
        """First position after the last image; 0 without an image."""
        return max((end for _, end in self.images), default=0)

    def find(self, needle: str) -> tuple[Span, ...]:
        """Token spans of all occurrences of ``needle``: runs of tokens that overlap one.

        Raises:
            InterventionError: there are too many of them.
        """
        at = self.text.find(needle) if needle else -1
        inside = np.zeros(len(self.text) + 1, np.int64)
        count = 0
        while at >= 0:
            count += 1
            if count > MOST_OCCURRENCES:
                message = f"{brief(needle)} is in the prompt more than {MOST_OCCURRENCES} times"
                raise InterventionError(Code.INVALID_PARAMS, message)
            end = at + len(needle)
            inside[at + 1 : end + 1] = 1
            at = self.text.find(needle, end)
        before = np.cumsum(inside)  # before[i]: characters of occurrences among the first i
        ends = np.fromiter(chain.from_iterable(self.offsets), np.int64, 2 * len(self.offsets))
        ranges = ends.reshape(-1, 2)
        hit = before[ranges[:, 1]] > before[ranges[:, 0]]
        return runs(hit)

    def find_each(self, needle: str) -> tuple[Span, ...]:
        """As :meth:`find`, but a span for each occurrence; a token of two is in the later one's."""
        starts, at = [], self.text.find(needle)
        while at >= 0:
            starts.append(at)
            at = self.text.find(needle, at + len(needle))
        found: list[Span] = []
        for start, end in self.find(needle):
            before = [bisect_left(starts, self.offsets[token][1]) for token in range(start, end)]
            cuts = [start + i for i in range(1, end - start) if before[i] != before[i - 1]]
            found += pairwise([start, *cuts, end])
        return tuple(found)


def runs(chosen: NDArray[np.bool_]) -> tuple[Span, ...]:
    """The maximal runs of true positions."""
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    return tuple((int(start), int(end)) for start, end in edges.reshape(-1, 2))


@dataclass(frozen=True)
class Context:
    """The argument of a method's ``compile``. ``artifacts`` finds an artifact by its digest."""

    model: ModelFacts
    prompt: Prompt
    artifacts: Callable[[str], Artifact | None] | None = None

    def plan(self) -> PlanBuilder:
        """A fresh plan for this prompt."""
        return PlanBuilder(self.model.shape, self.prompt.length, self.prompt.question_start)

    def artifact(
        self, digest: str, kind: str | Collection[str], param: str = "artifact"
    ) -> Artifact:
        """An artifact of a kind, or of one of some, that fits the model.

        ``param`` is the field that names it.

        Raises:
            InterventionError: the server has none of this digest, or it is of another kind or
                was made for another model.
        """
        found = self.artifacts(digest) if self.artifacts else None
        if found is None:
            message = f"the server has no artifact {digest}"
            raise InterventionError(Code.ARTIFACT_NOT_FOUND, message, param)
        kinds = (kind,) if isinstance(kind, str) else kind
        if found.kind not in kinds:
            needed = " or ".join(map(brief, kinds))
            message = f"the artifact is of kind {brief(found.kind)}; the method needs {needed}"
            raise InterventionError(Code.ARTIFACT_MISMATCH, message, param)
        try:
            check_for(found, self.model)
        except ArtifactError as error:
            raise InterventionError(Code.ARTIFACT_MISMATCH, str(error), param) from None
        return found
