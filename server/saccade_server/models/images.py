"""From a decoded image to the pixels a vision tower takes, and the number of features it makes.

Runs in the API process: it reads configurations, never weights. Always the PIL backend, so that
the pixels do not depend on whether torchvision is installed.
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

    def prepare(self, image: Image) -> Pixels:
        """Preprocess one image.

        Raises:
            ValueError: the processor refuses it, for instance a side is 200 times the other.
        """
        # Without a stated format, an image one or three pixels high passes for channels first.
        made = self._processor(
            image.convert("RGB"), return_tensors="np", input_data_format="channels_last"
        )
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
        class_tokens = 1 if vision.model_type == "clip_vision_model" else 0
        dropped = 1 if self._config.vision_feature_select_strategy == "default" else 0
        return patches + class_tokens - dropped

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
