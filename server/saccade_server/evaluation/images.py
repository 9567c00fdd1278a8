"""Images as they travel in a request."""

from __future__ import annotations

import base64
import io
import mimetypes
from pathlib import Path

from PIL import Image


def data_url(image: Image.Image) -> str:
    """The image as a PNG in a data URL."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return _url("image/png", file.getvalue())


def file_url(path: Path) -> str:
    """An image file as a data URL, as it is.

    Raises:
        OSError: it cannot be read.
    """
    return _url(mimetypes.guess_type(path.name)[0] or "image/png", path.read_bytes())


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
