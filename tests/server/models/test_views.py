"""Where in an image a feature is: from pixels to cells, and from cells to features."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    SiglipVisionConfig,
)

from saccade_server.models.conversation import Message
from saccade_server.models.family import serve
from saccade_server.models.llava_next import AnyResolutionLayout
from saccade_server.models.prompt import PreparedImage, PromptProcessor
from saccade_server.models.views import Cells, View, cut
from saccade_testing import tiny
from saccade_testing.cells import cell_pixels, grids
from saccade_testing.processors import PromptFolder

TILED = ["llava_next", "internvl", "idefics3", "smolvlm"]
FAMILIES = ["llava", *TILED, "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
SIZES = [(90, 40), (40, 70), (64, 64), (33, 30), (30, 110)]


def ramp(width: int, height: int) -> Image.Image:
    """Red says how far to the right a pixel is, green how far down, each from 0 to 1."""
    across = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    down = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    channels = np.stack([across, down, np.full_like(across, 0.5)], axis=-1)
    return Image.fromarray(np.round(255 * channels).astype(np.uint8))


def views_of(family: str, prompt_folder: PromptFolder, picture: Image.Image) -> tuple[Any, Any]:
    prompts = PromptProcessor.load(prompt_folder(family)[0])
    return prompts, prompts.chat([Message("user", (picture, "What is it?"))]).images


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cell_shows_what_its_box_says(
    family: str, size: tuple[int, int], prompt_folder: PromptFolder
) -> None:
    prompts, views = views_of(family, prompt_folder, ramp(*size))
    processor = prompts._images._processor
    mean, std = (np.array(values) for values in (processor.image_mean, processor.image_std))
    for view, shown in zip(views, grids(views), strict=True):
        seen = 0
        means = cell_pixels(view).mean(-1) * std + mean
        for row in range(view.cells.rows):
            for column in range(view.cells.columns):
                left, top, right, bottom = shown.boxes[row, column]
                if min(left, top) < -0.01 or max(right, bottom) > 1.01:
                    continue  # padding is black
                near = max(right - left, bottom - top) / 4  # a quarter of a cell
                seen += 1
                assert means[row, column, 0] == pytest.approx((left + right) / 2, abs=near)
                assert means[row, column, 1] == pytest.approx((top + bottom) / 2, abs=near)
        inner = (view.cells.rows - 2) * (view.cells.columns - 2)
        assert seen > 0.5 * inner


def without_attention(model: Any) -> Any:
    """A model whose tower computes every patch alone: what attention adds is nothing."""
    tower = next(
        part
        for name, part in model.model.named_children()
        if name in ("vision_tower", "vision_model", "visual")
    )
    outputs = [
        module
        for name, module in tower.named_modules()
        if name.endswith(("out_proj", "attn.proj", "projection_layer")) and "embed" not in name
    ]
    assert len(outputs) >= 3
    for module in outputs:
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.zeros_(module.bias)
    return model


@pytest.mark.parametrize("size", [(90, 40), (33, 70)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cell_decides_its_feature_alone(
    family: str, size: tuple[int, int], prompt_folder: PromptFolder
) -> None:
    _, views = views_of(family, prompt_folder, ramp(*size))
    served = serve(without_attention(tiny.build(family)))
    for view, shown in zip(views, grids(views), strict=True):
        changed = view.pixels.copy()
        rows, columns = view.cells.rows, view.cells.columns
        row, column = rows - 1, columns // 2
        places = np.arange(changed.size, dtype=np.float64).reshape(changed.shape)
        mine = cell_pixels(replaced(view, places))[row, column]
        changed.reshape(-1)[mine.astype(int)] += 1
        with torch.no_grad():
            before, after = served.encode_images([(view.pixels, view.grid), (changed, view.grid)])
        assert len(before.features) == view.length
        moved = (before.features - after.features).abs().amax(-1) > 1e-9
        places = shown.span[0] + moved.nonzero().flatten()
        assert places.tolist() == [shown.positions[row, column]]


def replaced(view: PreparedImage, pixels: np.ndarray) -> PreparedImage:
    made = copy.copy(view)
    object.__setattr__(made, "pixels", pixels)
    return made


@pytest.mark.parametrize("size", SIZES)
def test_a_detailed_view_is_what_padding_leaves(
    size: tuple[int, int], prompt_folder: PromptFolder
) -> None:
    """By hand: the image is as large as fits into the tiles, patches outside of it are gone."""
    _, (whole, detail) = views_of("llava_next", prompt_folder, ramp(*size))
    assert whole.cells == Cells(3, 3)
    down, across = detail.pixels.shape[:2]
    width, height = size
    scale = min(24 * across / width, 24 * down / height)
    for kept, full, length in (
        (detail.cells.rows, 3 * down, height * scale / 8),
        (detail.cells.columns, 3 * across, width * scale / 8),
    ):
        assert kept == full - 2 * int((full - int(round(length, 7))) // 2)
    assert detail.cells.gap == 1
    assert detail.length == detail.cells.rows * (detail.cells.columns + 1)
    assert detail.start == whole.start + 9
    assert (whole.image, detail.image) == (0, 0)


def test_the_features_of_published_sizes_are_transformers_own() -> None:
    """LLaVA-1.6's tiles of 336 pixels, for images of any proportions."""
    config = LlavaNextConfig()
    images = LlavaNextImageProcessorPil(image_grid_pinpoints=config.image_grid_pinpoints)
    own = LlavaNextProcessor.__new__(LlavaNextProcessor)
    own.image_processor, own.patch_size, own.num_additional_image_tokens = images, 14, 0
    layout = AnyResolutionLayout(config, images)
    tiles = {"pixel_values": [np.zeros((7, 3, 1, 1))]}
    random = np.random.default_rng(0)
    for width, height in random.integers(8, 3000, (300, 2)).tolist():
        views = layout.views(tiles, width, height)
        wanted = own._get_number_of_features(height, width, 336, 336)
        assert sum(view.features for view in views) == wanted
        down, across = views[1].pixels.shape[:2]
        assert [336 * down, 336 * across] in config.image_grid_pinpoints


def test_what_no_whole_patch_covers_is_not_shown() -> None:
    """Three patches of 8 pixels in a tile of 26, of an image that fills two tiles."""
    vision = SiglipVisionConfig(image_size=26, patch_size=8)
    assert cut((0.5, 0.0, 1.0, 1.0), vision) == pytest.approx((0.5, 0, 0.5 + 12 / 26, 24 / 26))


def test_a_digest_is_of_shapes_too() -> None:
    """The same numbers as other tiles, or on another grid, are seen otherwise."""
    numbers = np.arange(48, dtype=np.float32)
    shapes = [(1, 2, 3, 2, 4), (2, 1, 3, 2, 4), (1, 2, 3, 4, 2)]
    grids = [None, (1, 2, 4), (1, 4, 2)]
    views = [View(numbers.reshape(shape), grid, 9) for shape in shapes for grid in grids]
    assert len({view.digest() for view in views}) == len(views)
