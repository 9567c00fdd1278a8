"""Images from strangers: every format and mode we take, everything we do not."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade_server.api.errors import BadRequest
from saccade_server.api.images import media
from saccade_server.api.images.media import ImageBudget
from saccade_server.api.settings import ApiSettings
from saccade_testing.api.bodies import PICTURE, data_url, image_messages, image_part
from saccade_testing.api.server import Server

SETTINGS = ApiSettings("test", max_image_pixels=1_000_000, max_request_pixels=1_500_000)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data, **limits):
    budget = ImageBudget(ApiSettings("test", **limits) if limits else SETTINGS)
    return budget.open(data, "here").decode().picture


def refuse(data, **limits):
    with pytest.raises(BadRequest) as refused:
        decode(data, **limits)
    assert refused.value.param == "here"
    assert "0x" not in refused.value.message
    return refused.value.code


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, body=b"", bits=8, colour=2, more=b""):
    """A PNG file by hand: the header may promise anything."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + more
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


RED = Image.new("RGB", (12, 8), (250, 10, 10))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats(kind):
    image = decode(encode(RED, kind))
    assert (image.mode, image.size) == ("RGB", (12, 8))
    assert np.abs(np.asarray(image).astype(int) - [250, 10, 10]).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_modes_of_png(mode):
    source = RED.convert("L").convert(mode) if mode.startswith("I") else RED.convert(mode)
    image = decode(encode(source))
    assert (image.mode, image.size) == ("RGB", (12, 8))


def test_cmyk():
    assert decode(encode(RED.convert("CMYK"), "JPEG")).mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 255, 32768, 65535]] * 4, np.uint16)
    row = np.asarray(decode(encode(Image.fromarray(values))))[0, :, 0]
    assert row.tolist() == [0, 0, 128, 255]


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(encode(clear)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert decode(encode(palette, transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.new("LA", (4, 4), (0, 128))
    assert decode(encode(grey)).getpixel((0, 0)) == (127, 127, 127)


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(RED, "JPEG", exif=exif)).size == (8, 12)


@pytest.mark.filterwarnings("ignore:.*(EXIF|Tag)")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*" + b"\xff" * 60_000])
def test_broken_exif_is_ignored(exif):
    assert decode(encode(RED, "JPEG", exif=exif)).size == (12, 8)


def test_a_broken_profile_is_ignored():
    assert decode(encode(RED, "PNG", icc_profile=b"nonsense")).size == (12, 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (60, 1), (2, 2)])
def test_a_single_row_is_an_image(size, kind):
    assert decode(encode(Image.new("RGB", size), kind)).size == size


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_too_narrow(size):
    assert refuse(encode(Image.new("RGB", size))) == "invalid_image"


def test_too_long():
    assert decode(encode(Image.new("1", (400, 2)))).size == (400, 2)
    assert refuse(encode(Image.new("1", (402, 2)))) == "invalid_image"


def test_no_pixels():
    assert refuse(png(0, 0)) == "invalid_image"


@pytest.mark.parametrize("side", [1100, 12_000, 30_000, 2**31 - 1])
def test_a_bomb_is_not_decoded(side):
    assert refuse(png(side, side, b"\0" * 100_000)) in ("image_too_large", "invalid_image")


def test_the_pixels_of_a_request_are_counted_together():
    budget = ImageBudget(SETTINGS)
    data = encode(Image.new("1", (1000, 800)))
    budget.open(data, "first")
    with pytest.raises(BadRequest) as refused:
        budget.open(data, "second")
    assert (refused.value.code, refused.value.param) == ("image_too_large", "second")


def test_too_many_bytes():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert refuse(encode(Image.fromarray(noise)), max_image_bytes=1000) == "image_too_large"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_cut_off(kind, part):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    assert refuse(data[: int(len(data) * part)]) == "invalid_image"


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(decode(data)).astype(int) - [255, 0, 0]).max() < 4


def test_the_first_of_several_pictures():
    data = encode(RED, "MPO", save_all=True, append_images=[Image.new("RGB", (30, 30), "blue")])
    assert decode(data).size == (12, 8)


def test_a_frame_beyond_the_announced_screen_counts_in_full():
    data = bytearray(encode(Image.new("P", (1001, 1000)), "GIF"))
    data[6:10] = struct.pack("<HH", 8, 8)
    assert refuse(bytes(data)) == "image_too_large"


@pytest.mark.parametrize("tail", [b"\0" * 500, b"ftypmp42" * 50, b"\xff\xd8\xff\xda" * 500])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_bytes_behind_the_end(kind, tail):
    assert decode(encode(RED, kind) + tail).size == (12, 8)


@pytest.mark.parametrize(
    ("mode", "bits", "row", "key", "white"),
    [
        (0, 16, b"\0\7\0\7\1\7\0\6", b"\0\7", [1, 1, 0, 0]),
        (0, 8, b"\7\7\6\0", b"\0\7", [1, 1, 0, 0]),
        (0, 4, b"\x77\x60", b"\0\7", [1, 1, 0, 0]),
        (0, 2, b"\xa4", b"\0\2", [1, 1, 0, 0]),
        (0, 1, b"\x00", b"\0\0", [1, 1, 1, 1]),
        (2, 8, b"\1\2\3" * 2 + b"\1\2\4\0\2\3", b"\0\1\0\2\0\3", [1, 1, 0, 0]),
        (2, 16, b"\1\0\2\0\3\0" * 2 + b"\0" * 12, b"\1\0\2\0\3\0", [1, 1, 0, 0]),
    ],
)
def test_one_transparent_colour(mode, bits, row, key, white):
    pixels = np.asarray(decode(png(4, 1, b"\0" + row, bits, mode, chunk(b"tRNS", key))))
    assert (pixels[0] == 255).all(1).astype(int).tolist() == white


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("behind", [False, True])
def test_metadata_of_any_size_is_read_past(name, behind):
    head = {b"zTXt": b"workflow\0\0", b"iTXt": b"prompt\0\1\0\0\0", b"iCCP": b"profile\0\0"}[name]
    big = chunk(name, head + zlib.compress(b"x" * 3_000_000))
    data = encode(RED)
    place = len(data) - 12 if behind else 33
    assert decode(data[:place] + big + data[place:]).size == (12, 8)


@pytest.mark.parametrize("raw", [b"\0\0\0\3tEXtabc\0\0\0\0", b"\0\0\0\3zTXtabc\1\2\3\4"])
def test_metadata_with_a_wrong_sum_is_read_past(raw):
    data = encode(RED)
    assert decode(data[:33] + raw + data[33:]).size == (12, 8)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
EXIF = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
RAW = b"\nexif\n%8d\n%s\n" % (len(EXIF) + 6, (b"Exif\0\0" + EXIF).hex().encode())


@pytest.mark.parametrize(
    "turning",
    [
        (b"eXIf", EXIF),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW)),
        (b"tEXt", b"Raw profile type exif\0" + RAW),
    ],
    ids=["exif", "xmp", "packed-xmp", "packed-profile", "profile"],
)
def test_a_png_says_in_many_ways_which_side_is_up(turning):
    data = encode(RED)
    assert decode(data[:33] + chunk(*turning) + data[33:]).size == (8, 12)


def test_an_orientation_that_unpacks_without_end_is_not_read():
    endless = b"Raw profile type exif\0\0" + zlib.compress(RAW + b"0" * 3_000_000)
    data = encode(RED)
    assert decode(data[:33] + chunk(b"zTXt", endless) + data[33:]).size == (12, 8)


def smaller(data, factor):
    return np.asarray(ImageBudget(SETTINGS).open(data, "here").decode(factor).picture).astype(int)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_a_factor_makes_means_of_squares(mode, factor):
    """Over several strips, the last of them shorter, and whatever the mode."""
    grey = Image.effect_noise((1003, 701), 60)
    source = grey.convert(mode)
    if mode in ("LA", "RGBA"):
        source.putalpha(Image.effect_noise(grey.size, 60))
    data = encode(source)
    whole = decode(data)
    assert np.abs(smaller(data, factor) - np.asarray(whole.reduce(factor)).astype(int)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_strips_change_nothing(mode, monkeypatch: pytest.MonkeyPatch):
    data = encode(Image.effect_noise((103, 71), 60).convert(mode))
    whole = np.asarray(decode(data))
    monkeypatch.setattr(media, "STRIP_PIXELS", 500)
    assert (np.asarray(decode(data)) == whole).all()
    means = Image.fromarray(whole).reduce(3)
    assert np.abs(smaller(data, 3) - np.asarray(means).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("factor", "size"), [(2, (400, 300)), (3, (400, 300)), (8, (100, 75)), (17, (50, 38))]
)
def test_a_jpeg_is_made_smaller_by_its_decoder(factor, size):
    smooth = Image.radial_gradient("L").resize((800, 600)).convert("RGB")
    data = encode(smooth, "JPEG", quality=95)
    found = smaller(data, factor)
    assert found.shape[1::-1] == size
    wanted = np.asarray(smooth.resize(size, Image.Resampling.BOX)).astype(int)
    assert np.abs(found - wanted).mean() < 2


def test_a_smaller_image_is_upright_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new("RGB", (80, 40)), "JPEG", exif=exif)
    assert smaller(data, 4).shape == (20, 10, 3)


def test_formats_are_named():
    with pytest.raises(BadRequest, match=r"is an SVG or XML text; send a PNG, JPEG, WebP, GIF or"):
        decode(b"<?xml version='1.0'?><svg/>")
    with pytest.raises(BadRequest, match=r"is a HEIC file; send a PNG"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1")


@pytest.mark.parametrize(
    "data",
    [
        b"GET",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html></html>",
        b"%PDF-1.7",
        b"PK\x03\x04",
        encode(RED, "TIFF"),
        encode(RED, "ICO"),
        encode(RED, "PPM"),
        encode(RED, "EPS"),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_what_is_no_image(data):
    assert refuse(data) == "unsupported_image_format"


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]), st.data())
@settings(max_examples=60, deadline=None)
def test_damage_never_escapes(kind, draw):
    data = bytearray(encode(RED, kind))
    for _ in range(draw.draw(st.integers(1, 6))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with contextlib.suppress(BadRequest):
        assert decode(bytes(data)).mode == "RGB"


PATH = "messages[0].content[{}].image_url"


def post(server, *urls):
    response = server.chat(messages=image_messages(*urls))
    assert server.chat().status_code == 200
    return response


def test_the_image_at_fault_is_named(server: Server):
    broken = data_url(encode(RED)[:40])
    error = post(server, PICTURE, broken).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_image", PATH.format(1))
    assert not [r for r in server.engine.requests if r.images]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1/x.png", "image_url_not_allowed"),
        ("file:///etc/passwd", "image_url_not_allowed"),
        ("/etc/passwd", "image_url_not_allowed"),
        ("", "image_url_not_allowed"),
        ("data:image/png;base64,!!!!", "invalid_image_url"),
    ],
)
def test_urls_over_http(server: Server, url, code):
    response = post(server, url)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["param"] == PATH.format(0)


def test_too_many_images(server: Server):
    assert post(server, *[PICTURE] * 16).status_code == 200
    response = post(server, *[PICTURE] * 200)
    assert response.json()["error"]["code"] == "too_many_images"


def test_a_model_without_eyes(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server.prompts, "accepts_images", False, raising=False)
    response = post(server, PICTURE)
    assert response.json()["error"]["code"] == "images_not_supported"


def test_only_users_show_images(server: Server):
    part = image_part(PICTURE)
    messages = [{"role": "assistant", "content": [part]}, {"role": "user", "content": "?"}]
    error = server.chat(messages=messages).json()["error"]
    assert error["param"] == PATH.format(0)
