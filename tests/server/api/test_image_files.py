"""Files that would keep a decoder busy: many parts, many scans, slow encodings."""

import io
import struct
import time
import zlib

import pytest
from PIL import Image

from saccade_server.api.errors import BadRequest
from saccade_server.api.images.image_files import (
    MOST_FILL,
    MOST_PARTS,
    MOST_RUNS,
    MOST_SCANS,
    ImageFileError,
    trimmed,
)
from saccade_server.api.images.media import ImageBudget
from saccade_server.api.settings import ApiSettings

RED = Image.new("RGB", (12, 8), (250, 10, 10))


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data):
    return ImageBudget(ApiSettings("test")).open(data, "here").decode().picture


def chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


PNG, JPEG, GIF = (encode(RED, kind) for kind in ("PNG", "JPEG", "GIF"))
FRAME = GIF.index(b"\x2c", 13 + 3 * 2 ** ((GIF[10] & 7) + 1))
LAST_SCAN = JPEG.index(b"\xff\xda")


def with_parts(kind, count):
    """An ordinary picture with ``count`` more parts that mean nothing."""
    if kind == "PNG":
        return PNG[:33] + chunk(b"teXt") * count + PNG[33:]
    if kind == "JPEG":
        return JPEG[:2] + b"\xff\xfe\0\2" * count + JPEG[2:]
    if kind == "GIF-blocks":
        return GIF[:FRAME] + b"!\xfe" + b"\1a" * count + b"\0" + GIF[FRAME:]
    if kind == "GIF-extensions":
        return GIF[:FRAME] + b"!\xfe\0" * count + GIF[FRAME:]
    return GIF[:FRAME] + b"\0" * count + GIF[FRAME:]


KINDS = ["PNG", "JPEG", "GIF-blocks", "GIF-extensions", "GIF-nothing"]


@pytest.mark.parametrize("kind", KINDS)
def test_many_parts_are_read(kind):
    assert opened(with_parts(kind, 5000)).size == (12, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_without_end_are_refused(kind):
    data = with_parts(kind, MOST_PARTS + 1)
    with pytest.raises(BadRequest, match=f"more than {MOST_PARTS} parts") as refused:
        opened(data)
    assert refused.value.code == "invalid_image"


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\0"])
def test_a_header_of_nothing(filling):
    with pytest.raises(ImageFileError, match="damaged"):
        trimmed(JPEG[:2] + filling * MOST_FILL * 2 + JPEG[2:], "JPEG")
    assert trimmed(JPEG[:2] + b"\xff" * 100 + JPEG[2:], "JPEG")


@pytest.mark.parametrize("start", [JPEG[:2], JPEG[:LAST_SCAN], JPEG[:2] + b"\xff\xd9"])
@pytest.mark.parametrize("filling", [b"", b"\xff", b"\xff\0", b"a", b"\xff\xd0"])
def test_a_header_that_leads_to_no_scan(start, filling):
    """Refused before a decoder looks for the scan, byte by byte."""
    with pytest.raises(ImageFileError, match="damaged"):
        trimmed(start + filling * 1000, "JPEG")


def test_scans_without_end_are_refused():
    progressive = encode(Image.effect_noise((64, 64), 50), "JPEG", progressive=True)
    assert opened(progressive).size == (64, 64)
    start = progressive.rindex(b"\xff\xda")
    scan = progressive[start:-2]
    many = progressive[:start] + scan * 1000 + b"\xff\xd9"
    with pytest.raises(BadRequest, match=f"more than {MOST_SCANS} scans"):
        opened(many)


def test_scans_of_other_pictures_do_not_count():
    """A thumbnail in the metadata, and whatever stands behind the end."""
    thumbnail = b"\xff\xe1" + struct.pack(">H", 4002) + b"\xff\xda\0\2" * 1000
    data = JPEG[:2] + thumbnail + JPEG[2:] + b"\xff\xda\0\2" * 1000
    assert opened(data).size == (12, 8)


def test_restart_markers_are_no_parts():
    data = encode(Image.effect_noise((640, 640), 50), "JPEG", restart_marker_blocks=1)
    assert data.count(b"\xff\xd0") > 100
    assert opened(data).size == (640, 640)


def test_a_slow_encoding():
    palette = encode(Image.new("P", (64, 64)), "BMP")
    start = struct.unpack("<I", palette[10:14])[0]
    head = bytearray(palette[:start])
    head[30:34] = struct.pack("<I", 1)
    rows = (b"\x40\x01" + b"\0\0") * 64 + b"\0\1"
    assert opened(bytes(head) + rows).size == (64, 64)
    with pytest.raises(BadRequest, match="run-length"):
        opened(bytes(head) + rows + bytes(MOST_RUNS))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_any_piece_of_a_file_may_be_missing(kind):
    data = encode(RED, kind)
    for end in range(len(data)):
        try:
            left = trimmed(data[:end], kind)
        except ImageFileError:
            continue
        assert len(left) <= end
        assert kind == "PNG" or left == data[:end]


def test_a_hostile_header_is_refused_soon():
    """Walked by hand each of these takes seconds; the bound is generous for a busy machine."""
    began = time.monotonic()
    for data in (
        JPEG[:2] + b"\xff" * 20_000_000 + JPEG[2:],
        JPEG[:2] + b"\xff" * 20_000_000,
        JPEG[:2] + b"\xff\xd9" + b"\xff\0" * 10_000_000,
        JPEG[:2] + b"\xff\xfe\0\2" * 5_000_000,
        PNG[:33] + chunk(b"tEXt", b"a\0") * 1_400_000,
        GIF[:FRAME] + b"!\xfe" + b"\1a" * 10_000_000,
    ):
        with pytest.raises(BadRequest):
            opened(data)
    assert time.monotonic() - began < 20
