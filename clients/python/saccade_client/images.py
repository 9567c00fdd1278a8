"""Turn what people call an image into the content part that goes on the wire.

Files and bytes are sent as they are, their type read from their first bytes, never from a name.
PIL images and arrays become PNG, which keeps every pixel. Data and http(s) URLs pass through; the
server decides whether it fetches. PIL and numpy are imported only where a caller hands us one.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from saccade_client.errors import InvalidInput, MissingPackage

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Array = np.ndarray[Any, Any]

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image | Array"
Images: TypeAlias = "ImageLike | Sequence[ImageLike]"

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://", re.ASCII)
MAGIC = [
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"BM"), "image/bmp"),
    (re.compile(rb"II\*\0|MM\0\*"), "image/tiff"),
]
# The modes PNG can hold as they are; PIL converts the others that a display could show.
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
CONVERTED_MODES = ("CMYK", "YCbCr", "HSV", "LAB", "RGBX", "PA")
NEED_PILLOW = "sending arrays needs Pillow: pip install pillow"


def image_part(image: ImageLike) -> dict[str, Any]:
    """Return the `image_url` content part for one image. Raises InvalidInput."""
    return {"type": "image_url", "image_url": {"url": image_url(image)}}


def image_parts(images: Images) -> list[dict[str, Any]]:
    """Return the content parts of one image or of a list or tuple of them, in order."""
    if isinstance(images, list | tuple):
        return [image_part(image) for image in images]
    return [image_part(cast("ImageLike", images))]


def image_url(image: ImageLike) -> str:
    """Return a URL for a path, bytes, PIL image, uint8 array or URL. Raises InvalidInput."""
    if isinstance(image, str):
        return text_url(image)
    if isinstance(image, os.PathLike):
        return data_url(file_bytes(Path(image)), f"the file {os.fspath(image)}")
    if isinstance(image, bytes | bytearray | memoryview):
        return data_url(bytes(image), "the bytes given")
    other: Any = image
    if is_a(other, "PIL.Image", "Image"):
        return data_url(png(other), "the PIL image")
    if is_a(other, "numpy", "ndarray"):
        return data_url(png(array_image(other)), "the array")
    wanted = "a path, a URL, bytes, a PIL image or a uint8 array"
    raise InvalidInput(f"an image is {wanted}, not {type(image).__name__}")


def is_a(value: object, module: str, name: str) -> bool:
    """Check a type without importing it: who holds such an object has imported its module."""
    found = sys.modules.get(module)
    return found is not None and isinstance(value, getattr(found, name))


def text_url(text: str) -> str:
    """Pass a data or http(s) URL through; read anything else as the path of a file."""
    if text[:5].lower() == "data:":
        return text
    if scheme := URL.match(text):
        if scheme[1].lower() in ("http", "https"):
            return text
        raise InvalidInput(f"{scheme[1]} URLs are not sent; for a file, give its path")
    return data_url(file_bytes(Path(text)), f"the file {text}")


def file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(f"cannot read the image file {shortened(path)}: {reason}") from error


def shortened(path: Path) -> str:
    """Keep base64 that was mistaken for a path out of the error message."""
    text = repr(str(path))
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def data_url(content: bytes, name: str) -> str:
    if not content:
        raise InvalidInput(f"{name}: empty, so not an image")
    return f"data:{mime_type(content, name)};base64,{base64.b64encode(content).decode('ascii')}"


def mime_type(content: bytes, name: str) -> str:
    for magic, mime in MAGIC:
        if magic.match(content):
            return mime
    raise InvalidInput(f"{name}: not PNG, JPEG, GIF, WebP, BMP or TIFF by its first bytes")


def png(image: Image) -> bytes:
    """Encode the pixels as they are held: an EXIF rotation not yet applied stays unapplied."""
    if 0 in image.size:
        raise InvalidInput(f"the image has no pixels: its size is {image.size}")
    if image.mode not in (*PNG_MODES, *CONVERTED_MODES):
        raise InvalidInput(f"a PIL image of mode {image.mode!r}: convert it to 'RGB' first")
    buffer = io.BytesIO()
    try:
        # Only now PIL reads the file that it opened, which may be cut short or closed.
        if image.mode in CONVERTED_MODES:
            image = image.convert("RGBA" if image.mode == "PA" else "RGB")
        image.save(buffer, format="PNG", exif=b"")
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidInput(f"the PIL image cannot be read: {error}") from error
    return buffer.getvalue()


def array_image(array: Array) -> Image:
    """Wrap a uint8 array, [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], as a PIL image."""
    if array.dtype != "uint8":
        hint = "scale to 0…255 and convert with .astype('uint8')"
        raise InvalidInput(f"an image array is uint8, not {array.dtype}: {hint}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise InvalidInput(f"an image array is [height, width, 1|3|4], not {list(array.shape)}")
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingPackage(NEED_PILLOW) from error
    return PIL.Image.fromarray(array)
