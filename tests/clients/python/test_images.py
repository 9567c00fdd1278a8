import base64
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade_client import InvalidInput, image_part
from saccade_client.images import image_parts, image_url

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def content(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2], validate=True)


def opened(url: str) -> Image.Image:
    assert url.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(content(url)))


def saved(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_encoded_bytes_are_sent_unchanged_under_their_own_type(form, tmp_path: Path):
    data = saved(form)
    path = tmp_path / "picture.txt"
    path.write_bytes(data)
    for image in (data, bytearray(data), memoryview(data), path, str(path)):
        url = image_url(image)
        assert url.startswith(f"data:image/{form};base64,")
        assert content(url) == data


@pytest.mark.parametrize(
    "url", ["https://host/a.png", "HTTP://host/a", "data:image/png;base64,AA==", "DATA:,x"]
)
def test_urls_pass_through(url):
    assert image_part(url) == {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize(
    "array",
    [PIXELS, PIXELS[:, :, :1], PIXELS[:, :, 0], np.dstack([PIXELS, PIXELS[:, :, 0]]), PIXELS[::-1]],
    ids=["rgb", "one-channel", "gray", "rgba", "reversed"],
)
def test_arrays_keep_every_pixel(array):
    assert np.array_equal(np.asarray(opened(image_url(array))), array.squeeze())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pil_images_keep_mode_and_pixels(mode):
    image = Image.new(mode, (3, 2))
    back = opened(image_url(image))
    assert (back.mode, back.size, back.tobytes()) == (image.mode, image.size, image.tobytes())


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "PA", "RGBX"])
def test_pil_modes_without_png_are_converted(mode):
    assert opened(image_url(Image.new(mode, (3, 2)))).mode in ("RGB", "RGBA")


def test_a_rotation_not_applied_is_not_applied_in_secret():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", exif=exif)
    url = image_url(Image.open(buffer))
    assert not opened(url).getexif()
    assert np.array_equal(np.asarray(opened(url)), PIXELS)


def test_one_image_or_several():
    assert image_parts("http://a/b") == [image_part("http://a/b")]
    assert len(image_parts(["http://a/b", PIXELS])) == 2
    assert len(image_parts(PIXELS)) == 1
    assert image_parts(()) == []


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("no/such/file.png", "cannot read the image file 'no/such/file.png': No such file"),
        (".", "directory"),
        ("a\0b", "cannot read"),
        ("x" * 5000, r"cannot read the image file 'x+… \(5002 characters\)"),
        ("file:///etc/hosts", "file URLs are not sent"),
        ("ftp://host/a.png", "ftp URLs are not sent"),
        (b"", "empty"),
        (b"%PDF-1.7", "not PNG, JPEG"),
        (b"RIFF....WAVE", "not PNG, JPEG"),
        (None, "not NoneType"),
        (3, "not int"),
        ({"url": "http://a"}, "not dict"),
        (PIXELS / 255, "uint8, not float64"),
        (PIXELS.astype(np.int64), "uint8, not int64"),
        (PIXELS[None], r"not \[1, 4, 5, 3\]"),
        (PIXELS.transpose(2, 0, 1), r"not \[3, 4, 5\]"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 0), np.uint8), "no pixels"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (Image.new("F", (2, 2)), "mode 'F'"),
    ],
)
def test_bad_images_say_what_is_wrong(image, reason):
    with pytest.raises(InvalidInput, match=reason):
        image_url(image)


def test_arrays_without_pillow_say_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(InvalidInput, match="pip install pillow"):
        image_url(PIXELS)
