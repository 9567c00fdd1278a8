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

from typing import Any

from PIL.Image import Image, new
from transformers import AutoImageProcessor

from saccade_server.models.family import SUPPORTED
from saccade_server.models.folder import UnsupportedModelError, named
from saccade_server.models.views import ImageLayout, Pixels

LARGE_PIXELS = 16 * 1024 * 1024
"""Pixels of an image that is decoded whole, whatever the model makes of it: most photographs."""
REDUCING_GAP = 3
"""Pillow's advice for reducing in two steps without a visible difference."""


class ImagePreprocessor:
    """A model's image processor, and the layout of views that its family makes of an image."""

    def __init__(self, config: Any, processor: Any, tokenizer: Any = None) -> None:
        self._processor = processor
        layout = SUPPORTED[config.model_type].layout or ImageLayout
        self._layout = layout(config, processor, tokenizer)

    @classmethod
    def load(cls, model: str, config: Any, tokenizer: Any) -> ImagePreprocessor:
        """Load the image processor of a model folder and try it.

        Raises:
            UnsupportedModelError: there is none, or it makes images of another size than the
                vision tower takes.
        """
        try:
            auto: Any = AutoImageProcessor
            processor = auto.from_pretrained(model, backend="pil", trust_remote_code=False)
            preprocessor = cls(config, processor, tokenizer)
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
        try:
            return max(int(self._layout.shrink(width, height) / REDUCING_GAP), 1)
        except ValueError:
            return 1  # refused when it is prepared

    def prepare(self, image: Image) -> Pixels:
        """Preprocess one image.

        Raises:
            ValueError: the processor refuses it, for instance a side is 200 times the other.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        # Without a stated format, an image one or three pixels high passes for channels first.
        form = {"return_tensors": "np", "input_data_format": "channels_last"}
        made = self._processor(image, **form, **self._layout.options)
        return Pixels(self._layout.views(made, image.width, image.height), image.size)

    def _check(self) -> None:
        made, taken = self._layout.sizes(self.prepare(new("RGB", (64, 64))).views)
        if made != taken:
            raise UnsupportedModelError(
                f"the image processor and the vision tower do not fit: sizes {made} and {taken}"
            )
