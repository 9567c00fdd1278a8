"""A prompt as the model sees it: tokens, where each comes from, and the views of its images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saccade_server.models.reasoning import Thought
from saccade_server.models.views import Cells, Grid, Size


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One view of an image of a prompt; its features are at [start, start + length).

    ``before`` and ``behind`` are how many tokens next to them name the view: they stand for the
    image's placeholder too. ``image`` counts the prompt's images from 0; None: each view is one.
    ``size`` is the whole image's, see Pixels.
    """

    digest: str
    start: int
    length: int
    pixels: NDArray[np.float32]
    grid: Grid | None
    copies: int = 1  # see View
    cells: Cells | None = None
    before: int = 0
    behind: int = 0
    image: int | None = None
    size: Size | None = None

    @property
    def span(self) -> tuple[int, int]:
        """The positions of its features."""
        return self.start, self.start + self.length

    @property
    def extent(self) -> tuple[int, int]:
        """The same, with the tokens that name it."""
        return self.start - self.before, self.start + self.length + self.behind


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt with its images' placeholders repeated, once for each feature.

    ``text`` is the rendering before that; ``offsets`` are ranges of it, empty for all but the first
    token that stands for a placeholder. ``images`` are views, in order. ``idle`` names variables
    of the chat template that change nothing here. ``thought`` is how far a chat is with the
    reasoning of its answer; None: the model has no markers for it, or this is plain text.
    """

    tokens: tuple[int, ...]
    text: str
    offsets: tuple[tuple[int, int], ...]
    images: tuple[PreparedImage, ...] = ()
    idle: tuple[str, ...] = ()
    thought: Thought | None = None

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The positions of every view's features."""
        return tuple(view.span for view in self.images)

    @property
    def image_numbers(self) -> tuple[int, ...]:
        """Which image of the prompt each view shows."""
        return tuple(
            at if view.image is None else view.image for at, view in enumerate(self.images)
        )
