"""From a decoded image to the pixels a vision tower takes, and the number of features it makes.

Runs in the API process: it reads configurations, never weights. Always the PIL backend, so that
the pixels do not depend on whether torchvision is installed.

Images of up to LARGE_PIXELS reach the processor whole. Of larger ones it gets a picture that was
made smaller by a whole number, but is still REDUCING_GAP times as large, along each side, as what
the processor makes of it. The values that the tower sees then differ a little from those of the
whole image: measured at 27 megapixels and 336 pixels a side, by 0.2 of 255 steps in the mean (1.0
at most) for a picture with structure of every size, by 0.9 (5.1) for pure noise.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, new
from transformers import AutoImageProcessor

from saccade_server.models.base import Grid
from saccade_server.models.folder import UnsupportedModelError, named

LARGE_PIXELS = 16 * 1024 * 1024
"""Pixels of an image that is decoded whole, whatever the model makes of it: most photographs."""
REDUCING_GAP = 3
"""Pillow's advice for reducing in two steps without a visible difference."""


class Pixels(NamedTuple):
    """One preprocessed image."""

    pixels: NDArray[np.float32]  # [channels, height, width], or [patches, values] with a grid
    grid: Grid | None
    features: int  # rows the vision tower will make of it
    copies: int = 1  # of each value of a channel, one after another in time, in a patch

    def digest(self) -> str:
        """SHA-256 of what the vision tower sees."""
        sha = hashlib.sha256(repr((self.pixels.shape, self.grid)).encode())
        sha.update(np.ascontiguousarray(self.pixels).data)
        return sha.hexdigest()


class ImagePreprocessor:
    """A model's image processor. Features are counted by the model's configuration."""

    def __init__(self, config: Any, processor: Any) -> None:
        self._config = config
        self._processor = processor

    @classmethod
    def load(cls, model: str, config: Any) -> ImagePreprocessor:
        """Load the image processor of a model folder and try it.

        Raises:
            UnsupportedModelError: there is none, or it makes images of another size than the
                vision tower takes.
        """
        try:
            auto: Any = AutoImageProcessor
            processor = auto.from_pretrained(model, backend="pil", trust_remote_code=False)
            preprocessor = cls(config, processor)
            with named(model):
                preprocessor._check()
        except UnsupportedModelError:
            raise
        except Exception as error:  # whatever its files make its code do
            raise UnsupportedModelError(
                f"{model}: has no image processor that can be read, and takes images "
                f"({type(error).__name__}); it needs the preprocessor_config.json or "
                "processor_config.json of this model"
            ) from error
        return preprocessor

    def reduction(self, width: int, height: int) -> int:
        """By how much the sides of an image may be divided before it is preprocessed.

        1 for all that is not large. What a processor crops is counted as if it were kept.
        """
        if width * height <= LARGE_PIXELS:
            return 1
        if hasattr(self._processor, "get_number_of_image_patches"):
            try:
                patches = self._processor.get_number_of_image_patches(height, width)
            except ValueError:
                return 1  # refused when it is prepared
            taken = patches * self._config.vision_config.patch_size**2
            smaller = math.sqrt(width * height / taken)
        else:
            smaller = min(width, height) / max(self._sides())
        return max(int(smaller / REDUCING_GAP), 1)

    def prepare(self, image: Image) -> Pixels:
        """Preprocess one image.

        Raises:
            ValueError: the processor refuses it, for instance a side is 200 times the other.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        # Without a stated format, an image one or three pixels high passes for channels first.
        made = self._processor(image, return_tensors="np", input_data_format="channels_last")
        grids = made.get("image_grid_thw")
        if grids is None:
            pixels = _float32(made["pixel_values"][0])
            return Pixels(pixels, None, self._fixed_features(pixels))
        frames, rows, columns = (int(size) for size in grids[0])
        features = frames * rows * columns // self._config.vision_config.spatial_merge_size**2
        copies: int = self._config.vision_config.temporal_patch_size
        return Pixels(_float32(made["pixel_values"]), (frames, rows, columns), features, copies)

    def _fixed_features(self, pixels: NDArray[np.float32]) -> int:
        """Patches of a LLaVA image, with or without the tower's class token."""
        vision = self._config.vision_config
        patches: int = math.prod(side // vision.patch_size for side in pixels.shape[-2:])
        class_tokens = 0 if vision.model_type == "siglip_vision_model" else 1
        dropped = 1 if self._config.vision_feature_select_strategy == "default" else 0
        return patches + class_tokens - dropped

    def _sides(self) -> list[int]:
        """The lengths that a processor of fixed sizes resizes to, and the tower's own."""
        size = self._processor.size
        named = [size[name] for name in ("height", "width", "shortest_edge") if name in size]
        return [self._config.vision_config.image_size, *(side for side in named if side)]

    def _check(self) -> None:
        vision = self._config.vision_config
        trial = self.prepare(new("RGB", (64, 64)))
        if trial.grid is not None:
            made, taken = self._processor.patch_size, vision.patch_size
            if (made, self._processor.merge_size) == (taken, vision.spatial_merge_size):
                return
        else:
            made, taken = trial.pixels.shape[-2:], (vision.image_size,) * 2
            if made == taken:
                return
        raise UnsupportedModelError(
            f"the image processor and the vision tower do not fit: sizes {made} and {taken}"
        )


def _float32(values: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32)
