"""From a data URL to an RGB image, trusting nothing: not the type, not the size, not the header.

The format is found in the bytes, never in the URL. Dimensions are checked from the header before a
pixel is decoded. All modes become RGB: transparency is laid over white, 16-bit grey keeps its high
byte, EXIF orientation is applied, colour profiles are ignored. Animations are refused. Messages
are fixed: Pillow's own may name addresses. Everything here is CPU work for a worker thread.
"""

from __future__ import annotations

import binascii
import io
import re
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps

from saccade_server.api.errors import BadRequest
from saccade_server.api.settings import ApiSettings

DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]{1,64})?((?:;[a-z0-9.=+-]{1,64}){0,4});base64", re.I)

SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
)

# What Pillow's decoders raise on broken files, besides their own UnidentifiedImageError (OSError);
# and what it warns of, where warnings are errors.
BROKEN = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass
class ImageBudget:
    """Decodes the images of one request within its limits."""

    settings: ApiSettings
    pixels: int = field(default=0, init=False)

    def decode(self, data: bytes, param: str) -> Image.Image:
        """Turn an image file into RGB pixels."""
        if len(data) > self.settings.max_image_bytes:
            raise too_large(self.settings.max_image_bytes, param)
        kind = sniff(data)
        if kind is None:
            message = "The image is not a PNG, JPEG, WebP, GIF or BMP file."
            raise BadRequest(message, code="unsupported_image_format", param=param)
        try:
            with Image.open(io.BytesIO(data), formats=[kind]) as image:
                self._check_size(image.width, image.height, param)
                if image.format in ("PNG", "GIF", "WEBP") and getattr(image, "is_animated", False):
                    raise _invalid("Animated images are not supported; send one frame.", param)
                image.load()
                return _to_rgb(_upright(image))
        except BOMBS:
            raise self._too_many_pixels(param) from None
        except BROKEN:
            raise _invalid("The image is damaged or incomplete.", param) from None

    def _check_size(self, width: int, height: int, param: str) -> None:
        short, long = sorted((width, height))
        if short < self.settings.min_image_side:
            message = f"Each side of an image needs {self.settings.min_image_side} pixels or more."
            raise _invalid(message, param)
        if long > short * self.settings.max_image_aspect:
            ratio = self.settings.max_image_aspect
            raise _invalid(f"The image is more than {ratio:g} times as long as wide.", param)
        self.pixels += width * height
        if width * height > self.settings.max_image_pixels:
            raise self._too_many_pixels(param)
        if self.pixels > self.settings.max_request_pixels:
            limit = self.settings.max_request_pixels
            message = f"The images of a request may have {limit} pixels together."
            raise BadRequest(message, code="image_too_large", param=param)

    def _too_many_pixels(self, param: str) -> BadRequest:
        message = f"An image may have {self.settings.max_image_pixels} pixels."
        return BadRequest(message, code="image_too_large", param=param)


def is_data_url(url: str) -> bool:
    """True if ``url`` holds the image itself."""
    return url[:5].lower() == "data:"


def read_data_url(url: str, limit: int, param: str) -> bytes:
    """Return the bytes inside a data URL; base64 only, and strictly."""
    head, comma, text = url.partition(",")
    if not comma or not DATA_URL.fullmatch(head[:256]):
        message = "An image data URL reads 'data:image/png;base64,...'."
        raise BadRequest(message, code="invalid_image_url", param=param)
    if len(text) // 4 * 3 > limit + 3:
        raise too_large(limit, param)
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        message = "The image data is not valid base64."
        raise BadRequest(message, code="invalid_image_url", param=param) from None
    if not data:
        raise BadRequest("The image is empty.", code="invalid_image", param=param)
    return data


def sniff(data: bytes) -> str | None:
    """Name the format of an image file by its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for magic, kind in SIGNATURES if data.startswith(magic)), None)


def too_large(limit: int, param: str) -> BadRequest:
    """Refuse an image file of too many bytes."""
    return BadRequest(f"An image may have {limit} bytes.", code="image_too_large", param=param)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except BROKEN:
        return image  # unreadable EXIF says nothing about the orientation


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _high_byte(image).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    # Copied even if it is RGB already: the file behind a lazily loaded image is closed soon.
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _high_byte(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits; Pillow's own conversion clips instead of scaling."""
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))


def _invalid(message: str, param: str) -> BadRequest:
    return BadRequest(message, code="invalid_image", param=param)
