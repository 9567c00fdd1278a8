"""By hand: a box painted on a file's picture, and the tokens whose pixels are painted then.

From the bytes of a file, through turning and reduction, whatever a family makes of it; what the
geometry says of cells is compared with the pixels that the tower would get.
"""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    LlavaConfig,
    LlavaImageProcessorPil,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from saccade_interventions.image_views import ImageView
from saccade_interventions.methods.look_at import LookAt
from saccade_interventions.regions import within
from saccade_server.api.images.media import ImageBudget
from saccade_server.api.settings import ApiSettings
from saccade_server.models import images
from saccade_server.models.conversation import Message
from saccade_server.models.images import ImagePreprocessor
from saccade_server.models.prompt import PreparedImage, PromptProcessor, RenderedPrompt
from saccade_server.models.views import Pixels
from saccade_server.requests.prepared import described
from saccade_testing.cells import cell_pixels
from saccade_testing.plans import context_of
from saccade_testing.processors import PromptFolder

FAMILIES = (
    *("llava", "llava_next", "internvl", "idefics3", "smolvlm"),
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
)
SIZES = [(640, 480), (330, 470), (960, 200), (97, 101)]
BLUR = 0.14
"""Of a cell of 8 pixels: a resized edge lies across about one."""

# What a turn makes of a picture, so that what is painted upright can be stored turned.
UNTURNED = {
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def stored(upright: Image.Image, turn: int, kind: str = "PNG") -> bytes:
    """A file whose picture is ``upright`` once it is turned as the file says."""
    undo = UNTURNED[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    picture = upright if undo is None else upright.transpose(undo)
    picture.save(file, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def pixels_of(prompts: Any, data: bytes) -> Pixels:
    """As requests' images are made."""
    opened = ImageBudget(ApiSettings("test")).open(data, "here")
    picture, size = opened.decode(prompts.reduction(opened.width, opened.height))
    made: Pixels = prompts.prepare_image(picture)
    return made._replace(size=size)


def painted(size: tuple[int, int], box: tuple[int, int, int, int] | None) -> Image.Image:
    """Black, with a white box."""
    picture = Image.new("RGB", size)
    if box is not None:
        left, top, right, bottom = box
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), "white")
    return picture


def boxes(size: tuple[int, int], count: int = 4) -> list[tuple[int, int, int, int]]:
    """Random ones, at least a third of a side long."""
    random = np.random.default_rng(size)
    found = []
    for _ in range(count):
        long = [int(random.integers(side // 3, side)) for side in size]
        first = [int(random.integers(0, side - n + 1)) for side, n in zip(size, long, strict=True)]
        found.append((*first, first[0] + long[0], first[1] + long[1]))
    return found


def compare(
    prompt: RenderedPrompt, other: RenderedPrompt, white: float, box: tuple[int, ...]
) -> None:
    """What the geometry says of a box and what the pixels of two prompts say, cell by cell."""
    views = described(prompt).views
    assert len(views) == len(prompt.images)
    sure, shares = set[int](), set[int]()
    for view, black, bright in zip(views, prompt.images, other.images, strict=True):
        difference = (cell_pixels(bright) - cell_pixels(black)).mean((-1, -2)) / white
        said, cell = told(view, box)
        assert np.abs(said / cell - difference).max() < BLUR
        visible = within(view, (0, 0, 1, 1))
        share = difference * cell / np.maximum(visible, 1e-9)
        known = (view.positions >= 0) & (visible > 0.4 * cell)
        sure |= set(view.positions[known & (share > 0.5 + 1.5 * BLUR)].tolist())
        shares |= set(view.positions[known & (share > 0.5 - 1.5 * BLUR)].tolist())
        shares |= set(view.positions[(view.positions >= 0) & ~known].tolist())
    found = chosen(prompt, box)
    assert sure <= found <= shares
    assert found


def told(view: ImageView, box: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """How much of the cells lies in a box, and the area of one."""
    width, height = view.size
    fractions = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    left, top, right, bottom = view.box
    return within(view, fractions), (right - left) * (bottom - top) / (view.rows * view.columns)


def chosen(prompt: RenderedPrompt, box: tuple[int, ...]) -> set[int]:
    method = LookAt(regions=[{"box": list(box)}])
    plan = method.compile(context_of(described(prompt)))
    return set(np.flatnonzero(plan.base_tags() == 1).tolist())


def white_of(processor: Any) -> float:
    """The difference between white and black in the tower's input, in the mean over channels."""
    return float(np.mean([1 / std for std in processor.image_std]))


@pytest.mark.parametrize("turn", UNTURNED)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_painted_box_is_where_the_geometry_says(
    family: str,
    size: tuple[int, int],
    turn: int,
    prompt_folder: PromptFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images beyond 60,000 pixels are made smaller first."""
    monkeypatch.setattr(images, "LARGE_PIXELS", 60_000)
    prompts = PromptProcessor.load(prompt_folder(family)[0])
    assert prompts._images is not None
    assert prompts.reduction(640, 480) > 1

    def rendered(box: tuple[int, int, int, int] | None) -> RenderedPrompt:
        made = pixels_of(prompts, stored(painted(size, box), turn))
        return prompts.chat([Message("user", (made, "What is it?"))])

    black = rendered(None)
    for box in boxes(size):
        compare(black, rendered(box), white_of(prompts._images._processor), box)


SQUARE = {"height": 24, "width": 24}
PROCESSORS = {
    "cropped": CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=SQUARE),
    "cropped more": CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size=SQUARE),
    "stretched, then cropped": CLIPImageProcessorPil(
        size={"height": 36, "width": 30}, crop_size=SQUARE, default_to_square=True
    ),
    "padded": LlavaImageProcessorPil(size={"shortest_edge": 24}, crop_size=SQUARE, do_pad=True),
    "not padded": LlavaImageProcessorPil(size={"shortest_edge": 24}, crop_size=SQUARE),
    "stretched": SiglipImageProcessorPil(size=SQUARE),
    "small, in a frame": CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE),
    "longest": CLIPImageProcessorPil(
        size={"shortest_edge": 24, "longest_edge": 40}, crop_size=SQUARE
    ),
    "as it is": CLIPImageProcessorPil(do_resize=False, crop_size=SQUARE),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 27}, crop_size=SQUARE),
}
TOWERS = {"stretched": SiglipVisionConfig, "dinov2": Dinov2Config}


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_every_way_in_which_llava_prepares_an_image(name: str, strategy: str) -> None:
    processor = PROCESSORS[name]
    config = LlavaConfig(
        vision_config=TOWERS.get(name, CLIPVisionConfig)(image_size=24, patch_size=8),
        image_token_id=5,
        vision_feature_select_strategy=strategy,
    )
    preprocessor = ImagePreprocessor(config, processor)

    def rendered(size: tuple[int, int], box: Any) -> RenderedPrompt:
        (view,), known = preprocessor.prepare(painted(size, box))
        image = PreparedImage("", 2, view.features, view.pixels, None, cells=view.cells, size=known)
        tokens = (0,) * (view.features + 4)
        return RenderedPrompt(tokens, "", (), (image,))

    for size in ((90, 60), (41, 67), (64, 64), (30, 26)):
        for box in boxes(size):
            black, white = rendered(size, None), rendered(size, box)
            if name == "padded":  # with the mean colour: nothing there differs
                assert black.images[0].cells is not None
            try:
                compare(black, white, white_of(processor), box)
            except Exception as error:
                raise AssertionError(f"{name}: {size} {box}: {error}") from error


def test_a_processor_that_does_something_else_is_not_guessed_at() -> None:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 20},
        crop_size={"height": 20, "width": 20},
        do_pad=True,
        pad_size=SQUARE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=24, patch_size=8), image_token_id=5
    )
    (view,) = ImagePreprocessor(config, processor).prepare(painted((64, 64), None)).views
    assert view.pixels.shape[-2:] == (24, 24)
    assert view.cells is None
