"""Regions of a prompt: boxes and masks over images in the user's pixels, token spans, texts; each
may have weights, see region_weights.py.

A region of an image is found in every view of it that shows the region, in tiles and in the whole
alike; views whose cells are of one size count as one grid. A cell belongs to a region if at least a
share ``overlap`` of what it shows of the image lies in the region, or of the region, if that is
smaller; if no cell of a grid does, those with the largest share do. So whatever the model is
shown of an image has a token, however small the region is. What it is not shown (LLaVA's processor
may crop an image) has none, and is refused.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from saccade_interventions.base import ImageSize, Needs
from saccade_interventions.context import Context
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.image_views import NOWHERE, WHOLE, Box, ImageView
from saccade_interventions.indices import Index
from saccade_interventions.masks import Mask
from saccade_interventions.region_weights import WeightGrid, Weights, over_cells, over_tokens
from saccade_interventions.spans import Text, TokenSpan, occurrences, tokens_of

LARGEST = 1_000_000
"""Pixels along a side that a box may speak of; images have limits of their own."""

ROUNDING = 1e-9
"""Of shares, so that a box that ends where a cell does has all of the cell."""

KINDS = ("box", "mask", "tokens", "text")
WEIGHTS = "weights"
"""Of a region of any kind; alone of a whole image."""

Coordinate = Annotated[float, Field(ge=0, le=LARGEST)]


def _with_area(box: list[float]) -> list[float]:
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        raise PydanticCustomError(
            "box", "a box is [left, top, right, bottom] with left < right and top < bottom"
        )
    return box


class RegionBase(BaseModel):
    """What all kinds of regions share. Numbers are strict, as in methods."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @abstractmethod
    def needs(self) -> Needs:
        """What a prompt must have for the region to be there."""

    @abstractmethod
    def positions(self, context: Context, overlap: float, param: str) -> NDArray[np.int64]:
        """Those of its tokens, at least one; ``param`` is where the request has the region.

        Raises:
            InterventionError: it is not there.
        """

    @abstractmethod
    def factors(self, context: Context, positions: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """The weight of each of its tokens, as :meth:`positions` has them; None: it has none."""


class TokenRegion(RegionBase):
    """Tokens of the prompt."""

    tokens: TokenSpan
    """Positions of the prompt, images expanded: [start, end)."""

    weights: Weights | None = None
    """A factor on the attention to each of them."""

    @model_validator(mode="after")
    def _one_for_each(self) -> TokenRegion:
        count = self.tokens[1] - self.tokens[0]
        if self.weights is not None and len(self.weights) != count:
            message = "{count} tokens have a weight each, and there are {found}"
            facts = {"count": count, "found": len(self.weights), "at": "weights"}
            raise PydanticCustomError("weights", message, facts)
        return self

    def needs(self) -> Needs:
        return Needs(tokens=self.tokens[1])

    def positions(self, context: Context, overlap: float, param: str) -> NDArray[np.int64]:
        return np.arange(*tokens_of(context.prompt, self.tokens, f"{param}.tokens"))

    def factors(self, context: Context, positions: NDArray[np.int64]) -> NDArray[np.float64] | None:
        return None if self.weights is None else np.array(self.weights, np.float64)


class TextRegion(RegionBase):
    """A text in the prompt."""

    text: Text
    """Every occurrence in the rendered prompt; whole tokens that overlap it."""

    weights: Weights | None = None
    """Factors on the attention to its tokens, laid evenly over those of each occurrence: one each
    if there are as many."""

    def needs(self) -> Needs:
        return Needs(texts=(self.text,))

    def positions(self, context: Context, overlap: float, param: str) -> NDArray[np.int64]:
        spans = occurrences(context.prompt, self.text, f"{param}.text")
        return np.concatenate([np.arange(*span) for span in spans])

    def factors(self, context: Context, positions: NDArray[np.int64]) -> NDArray[np.float64] | None:
        if self.weights is None:
            return None
        found = np.ones(context.prompt.length)
        for start, end in context.prompt.find_each(self.text):
            found[start:end] = over_tokens(self.weights, end - start)
        return found[positions]


class ImageRegion(RegionBase):
    """A part of an image. Pixels are the image's as it was sent, upright, from its top left."""

    image: Index = 0
    """Which image of the prompt, counted from 0."""

    weights: WeightGrid | None = None
    """Factors on the attention to its tokens: a grid of equal cells that fill the box, or without
    one the image, in rows from the top. A token gets their mean over what it shows of them."""

    def needs(self) -> Needs:
        return Needs(self.image + 1)

    def positions(self, context: Context, overlap: float, param: str) -> NDArray[np.int64]:
        views = views_of(context, self.image, f"{param}.image")
        self.check(views[0].size, param)
        inside = [self.areas(view) for view in views]
        found = cells(views, inside, self.area(views[0].size), overlap)
        if not found.size:
            message = "the model is shown nothing of this part of the image, which is cropped"
            raise InterventionError(Code.TARGET_NOT_FOUND, message, param)
        return found

    def factors(self, context: Context, positions: NDArray[np.int64]) -> NDArray[np.float64] | None:
        if self.weights is None:
            return None
        found = np.ones(context.prompt.length)
        for view in views_of(context, self.image, ""):
            there = view.positions != NOWHERE
            inside = over_cells(self.weights, self.frame(view.size), view)
            found[view.positions[there]] = inside[there]
        return found[positions]

    def frame(self, size: tuple[int, int]) -> Box:
        """What its weights fill, of an image of this width and height, in fractions."""
        return WHOLE

    @abstractmethod
    def check(self, size: tuple[int, int], param: str) -> None:
        """Refuse what is not a region of an image of this width and height.

        Raises:
            InterventionError: it is not.
        """

    @abstractmethod
    def area(self, size: tuple[int, int]) -> float:
        """Its area in an image of this width and height, as a fraction."""

    @abstractmethod
    def areas(self, view: ImageView) -> NDArray[np.float64]:
        """How much of every cell lies in it, in fractions of the image: [rows, columns]."""


class BoxRegion(ImageRegion):
    """A box on an image."""

    box: Annotated[list[Coordinate], Field(min_length=4, max_length=4), AfterValidator(_with_area)]
    """[left, top, right, bottom] in pixels."""

    def needs(self) -> Needs:
        width, height = math.ceil(self.box[2]), math.ceil(self.box[3])
        return Needs(self.image + 1, sizes=(ImageSize(self.image, width, height),))

    def check(self, size: tuple[int, int], param: str) -> None:
        width, height = size
        if self.box[2] > width or self.box[3] > height:
            message = f"the box is not inside the image, of {width} x {height} pixels"
            raise InterventionError(Code.TARGET_NOT_FOUND, message, f"{param}.box")

    def area(self, size: tuple[int, int]) -> float:
        left, top, right, bottom = self.frame(size)
        return (right - left) * (bottom - top)

    def areas(self, view: ImageView) -> NDArray[np.float64]:
        return within(view, self.frame(view.size))

    def frame(self, size: tuple[int, int]) -> Box:
        (left, top, right, bottom), (width, height) = self.box, size
        return left / width, top / height, right / width, bottom / height


class MaskRegion(ImageRegion):
    """Marked pixels of an image."""

    mask: Mask
    """In COCO's uncompressed run lengths; laid over the whole image."""

    def needs(self) -> Needs:
        height, width = self.mask.size
        return Needs(self.image + 1, sizes=(ImageSize(self.image, width, height, exact=True),))

    def check(self, size: tuple[int, int], param: str) -> None:
        (width, height), (rows, columns) = size, self.mask.size
        # Off by less than a pixel of the mask along the other side.
        alike = abs(columns * height - rows * width) < max(width, height)
        if rows > height or columns > width or not alike:
            message = (
                f"the mask is [{rows}, {columns}] pixels high and wide, the image "
                f"[{height}, {width}]; a mask has the image's size, or less in proportion"
            )
            raise InterventionError(Code.TARGET_NOT_FOUND, message, f"{param}.mask.size")

    def area(self, size: tuple[int, int]) -> float:
        height, width = self.mask.size
        return self.mask.marked / (height * width)

    def areas(self, view: ImageView) -> NDArray[np.float64]:
        return self.mask.areas(*view.edges)


class GridRegion(ImageRegion):
    """All of an image, by weights."""

    weights: WeightGrid
    """Factors on the attention to the image's tokens: a grid of equal cells that fill it, in rows
    from the top. A token gets their mean over what it shows of them."""

    def check(self, size: tuple[int, int], param: str) -> None:
        """All of an image is inside."""

    def area(self, size: tuple[int, int]) -> float:
        return 1.0

    def areas(self, view: ImageView) -> NDArray[np.float64]:
        return within(view, WHOLE)


def _tag(value: Any) -> str | None:
    """Of the one kind of region that is there; tags are no names of fields."""
    fields = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    named = [kind for kind in KINDS if kind in fields] or [WEIGHTS] * (WEIGHTS in fields)
    return f"a region by {named[0]}" if len(named) == 1 else None


Region = Annotated[
    Annotated[BoxRegion, Tag("a region by box")]
    | Annotated[MaskRegion, Tag("a region by mask")]
    | Annotated[TokenRegion, Tag("a region by tokens")]
    | Annotated[TextRegion, Tag("a region by text")]
    | Annotated[GridRegion, Tag("a region by weights")],
    Discriminator(
        _tag,
        custom_error_type="region",
        custom_error_message=(
            "A region is an object with one of box, mask, tokens and text, or an image's weights"
        ),
    ),
]


def views_of(context: Context, image: int, param: str) -> list[ImageView]:
    """The views of one image.

    Raises:
        InterventionError: there is no such image, or nothing is known of what its tokens show.
    """
    count = len(context.prompt.spans_by_image)
    if not context.model.accepts_images:
        raise InterventionError(Code.UNSUPPORTED_MODEL, "the model takes no images", param)
    if not count:
        raise InterventionError(Code.REQUIRES_IMAGE, "the prompt has no image", param)
    if image >= count:
        message = f"there is no image {image}; the prompt has {count}, from 0"
        raise InterventionError(Code.TARGET_NOT_FOUND, message, param)
    views = [view for view in context.prompt.views if view.image == image]
    if not views:
        message = "it is not known which tokens of the image show what"
        raise InterventionError(Code.UNSUPPORTED_MODEL, message, param)
    return views


def within(view: ImageView, box: Box) -> NDArray[np.float64]:
    """How much of every cell lies in a box, all in fractions of the image: [rows, columns]."""
    left, top, right, bottom = box
    across, down = view.edges
    widths = np.minimum(across[1:], right) - np.maximum(across[:-1], left)
    heights = np.minimum(down[1:], bottom) - np.maximum(down[:-1], top)
    areas: NDArray[np.float64] = np.maximum(heights, 0)[:, None] * np.maximum(widths, 0)
    return areas


def cells(
    views: Sequence[ImageView], inside: Sequence[NDArray[np.float64]], area: float, overlap: float
) -> NDArray[np.int64]:
    """The positions of the cells that belong to a region of an area, see above; none twice.

    ``inside``: of each view, how much of every cell lies in the region.
    """
    grids: dict[tuple[float, float], list[tuple[NDArray[np.int64], NDArray[np.float64]]]] = {}
    for view, part in zip(views, inside, strict=True):
        smaller = np.minimum(within(view, WHOLE), area)
        there = (view.positions != NOWHERE) & (part > ROUNDING * smaller)
        shares = part[there] / smaller[there]
        grids.setdefault(_cell(view), []).append((view.positions[there], shares))
    found = [np.zeros(0, np.int64)]
    for grid in grids.values():
        positions, shares = (np.concatenate(parts) for parts in zip(*grid, strict=True))
        chosen = shares >= overlap - ROUNDING
        if not chosen.any() and shares.size:
            chosen = shares >= shares.max() - ROUNDING
        found.append(positions[chosen])
    return np.concatenate(found)


def _cell(view: ImageView) -> tuple[float, float]:
    """Width and height of a cell in pixels, so that tiles of one image agree."""
    (left, top, right, bottom), (width, height) = view.box, view.size
    across, down = (right - left) * width / view.columns, (bottom - top) * height / view.rows
    return round(across, 6), round(down, 6)
