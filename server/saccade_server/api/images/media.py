"""From an image file to RGB pixels, trusting nothing: not the type, not the size, not the header.

The format is found in the bytes, never in the URL. Dimensions are checked from the header before a
pixel is decoded. All modes become RGB: transparency is laid over white, 16-bit values keep their
high byte, EXIF orientation is applied, colour profiles and other metadata are ignored. Of an
animation or a file of several pictures the first one is taken. Messages are fixed: Pillow's own may
name addresses. Everything here is CPU work for a worker thread.

An image much larger than the model's input is made smaller on the way (``factor``): a JPEG while
it is decoded, where its decoder can (by 2, 4 or 8), others right after, as means over squares of
pixels. Modes are converted in strips, so that only one copy of a huge image is ever held. Without a
factor every pixel is what it would be without strips.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile as PillowFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from saccade_server.api.errors import BadRequest
from saccade_server.api.images.data_urls import read_data_url, too_large
from saccade_server.api.images.image_files import (
    FORMATS,
    ImageFileError,
    other_kind,
    sniff,
    trimmed,
)
from saccade_server.api.settings import ApiSettings

# The classes themselves: Image.open would go on from a JPEG to the pictures behind it.
OPENERS: dict[str, type[PillowFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "WEBP": WebPImageFile,
}

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

STRIP_PIXELS = 1024 * 1024

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_SIDEWAYS = frozenset(_TURNS[value] for value in (5, 6, 7, 8))
"""Turns that make the width the height."""


class Decoded(NamedTuple):
    """A picture in RGB, upright; ``size`` is what its width and height are without reduction."""

    picture: Image.Image
    size: tuple[int, int]


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header was read and found acceptable; its pixels are still packed.

    ``bits`` are those of a sample in the file, for formats that have more or fewer than 8.
    """

    file: PillowFile
    bits: int
    param: str

    @property
    def width(self) -> int:
        """Pixels, before the EXIF orientation is applied."""
        return self.file.width

    @property
    def height(self) -> int:
        """Pixels, before the EXIF orientation is applied."""
        return self.file.height

    @property
    def pixels(self) -> int:
        """Pixels that decoding will make."""
        return self.width * self.height

    def decode(self, factor: int = 1) -> Decoded:
        """Decode it, each side about ``factor`` times shorter.

        Raises:
            BadRequest: the file is broken.
        """
        file = self.file
        try:
            whole = file.size
            if factor > 1 and isinstance(file, JpegImageFile):
                file.draft(None, (max(whole[0] // factor, 1), max(whole[1] // factor, 1)))
                factor //= round(max(whole) / max(file.size))
            file.load()
            picture, turn = _to_rgb(file, self.bits, factor), _turn(file)
            upright = picture if turn is None else picture.transpose(turn)
            return Decoded(upright, whole[::-1] if turn in _SIDEWAYS else whole)
        except BOMBS:
            raise _damaged(self.param) from None
        except BROKEN:
            raise _damaged(self.param) from None


@dataclass
class ImageBudget:
    """Opens the images of one request within its limits."""

    settings: ApiSettings
    pixels: int = field(default=0, init=False)

    def open(self, source: str | bytes, param: str) -> OpenedImage:
        """Read the header of an image: a data URL, or a file that was fetched.

        Raises:
            BadRequest: it is no image, or larger than a request may have; ``param`` is its place.
        """
        limit = self.settings.max_image_bytes
        data = source if isinstance(source, bytes) else read_data_url(source, limit, param)
        if len(data) > limit:
            raise too_large(limit, param)
        kind = sniff(data)
        if kind is None:
            raise _unsupported(data, param)
        try:
            data = trimmed(data, kind)
            file = OPENERS[kind](io.BytesIO(data))
        except ImageFileError as error:
            raise _invalid(str(error), param) from None
        except BOMBS:
            raise self._too_many_pixels(param) from None
        except BROKEN:
            raise _damaged(param) from None
        self._check_size(file.width, file.height, param)
        return OpenedImage(file, data[24] if kind == "PNG" else 8, param)

    def _check_size(self, width: int, height: int, param: str) -> None:
        short, long = sorted((width, height))
        if short < 1:
            raise _invalid("The image has no pixels.", param)
        if long > short * self.settings.max_image_aspect:
            ratio = self.settings.max_image_aspect
            message = f"The image is more than {ratio:g} times as long as wide; cut or pad it."
            raise _invalid(message, param)
        self.pixels += width * height
        if width * height > self.settings.max_image_pixels:
            raise self._too_many_pixels(param)
        if self.pixels > self.settings.max_request_pixels:
            limit = self.settings.max_request_pixels
            message = f"The images of a request may have {limit} pixels together; send fewer."
            raise BadRequest(message, code="image_too_large", param=param)

    def _too_many_pixels(self, param: str) -> BadRequest:
        limit = self.settings.max_image_pixels
        message = f"An image may have {limit} pixels; send it smaller."
        return BadRequest(message, code="image_too_large", param=param)


def _to_rgb(image: Image.Image, bits: int, factor: int) -> Image.Image:
    """Convert strip by strip, each side ``factor`` times shorter."""
    if image.mode == "RGB" and factor == 1 and "transparency" not in image.info:
        return image
    shape = (-(-image.width // factor), -(-image.height // factor))
    made = Image.new("RGB", shape)
    step = max(STRIP_PIXELS // (image.width * factor), 1) * factor
    for top in range(0, image.height, step):
        strip = image.crop((0, top, image.width, min(top + step, image.height)))
        flat = _flat(strip, bits)
        made.paste(flat if factor == 1 else flat.reduce(factor), (0, top // factor))
    return made


def _flat(image: Image.Image, bits: int) -> Image.Image:
    """RGB, transparency over white."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        return _high_byte(image, key if isinstance(key, int) else None).convert("RGB")
    if key is not None:
        image.info["transparency"] = _scaled(key, image.mode, bits)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or key is not None:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _scaled(key: object, mode: str, bits: int) -> object:
    """The transparent colour of a PNG, from the file's bits to the 8 that its pixels have now."""
    most = (1 << bits) - 1
    if mode == "L" and isinstance(key, int) and bits < 8:
        return key * 255 // most
    if mode == "RGB" and isinstance(key, tuple) and bits == 16:
        return tuple(value >> 8 for value in key)
    return key


def _high_byte(image: Image.Image, clear: int | None) -> Image.Image:
    """16-bit grey to 8 bits; Pillow's own conversion clips instead of scaling."""
    values = np.asarray(image).astype(np.int64)
    bytes_ = np.clip(values >> 8, 0, 255).astype(np.uint8)
    if clear is not None:
        bytes_[values == clear] = 255
    return Image.fromarray(bytes_)


def _turn(file: PillowFile) -> Image.Transpose | None:
    """What makes a picture upright."""
    try:
        return _TURNS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except BROKEN:
        return None  # unreadable EXIF says nothing about the orientation


def _unsupported(data: bytes, param: str) -> BadRequest:
    other = other_kind(data)
    what = f"The image is {other}" if other else "The image is in no format that is read here"
    message = f"{what}; send a {FORMATS} file."
    return BadRequest(message, code="unsupported_image_format", param=param)


def _damaged(param: str) -> BadRequest:
    return _invalid("The image is damaged or incomplete.", param)


def _invalid(message: str, param: str) -> BadRequest:
    return BadRequest(message, code="invalid_image", param=param)
