"""An image file before a decoder sees it: its format, and nothing in it that costs without end.

Decoders walk through metadata in Python, unpack compressed texts and colour profiles, and refuse
a picture because of them. Neither is needed: of a PNG only the chunks that make the picture, and
those that say which side is up, are handed on. Files of absurdly many parts are refused, because
walking through them takes seconds.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

FORMATS = "PNG, JPEG, WebP, GIF or BMP"

SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
)
OTHERS = (
    (re.compile(rb"\s*(?:<\?xml|<svg|<!--)", re.I), "an SVG or XML text"),
    (re.compile(rb"\s*<(?:!doctype html|html|head|body)", re.I), "an HTML page"),
    (re.compile(rb"....ftyp(?:hei|hev|mif1|msf1)", re.S), "a HEIC file"),
    (re.compile(rb"....ftypavi", re.S), "an AVIF file"),
    (re.compile(rb"II\*\0|MM\0\*"), "a TIFF file"),
    (re.compile(rb"%PDF"), "a PDF file"),
    (re.compile(rb"\s*[{\[]"), "a JSON text"),
)

MOST_PARTS = 100_000
"""Segments, chunks or blocks of a file. Real ones have a few thousand at most."""
MOST_SCANS = 40
"""Passes over the whole picture that a progressive JPEG may ask for; encoders write about 10."""
MOST_FILL = 65_536
"""Bytes between the segments of a JPEG's header that mean nothing."""
MOST_TEXT = 1024 * 1024
"""Bytes of an unpacked text that is read for the orientation in it."""
MOST_RUNS = 2 * 1024 * 1024
"""Bytes of a run-length encoded BMP, which is decoded slowly."""

# Chunks of a PNG that decide how its picture looks.
_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
# Texts that may hold the orientation.
_TURNING = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"Raw profile type APP1")


class ImageFileError(ValueError):
    """The file cannot be read; the message may be shown to the client."""


def sniff(data: bytes) -> str | None:
    """Name the format of an image file by its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for magic, kind in SIGNATURES if data.startswith(magic)), None)


def other_kind(data: bytes) -> str | None:
    """Say what a file is that is none of ours, if that is easy to see."""
    return next((name for pattern, name in OTHERS if pattern.match(data[:256])), None)


def trimmed(data: bytes, kind: str) -> bytes:
    """A file of the format ``kind`` without what its picture does not need.

    Raises:
        ImageFileError: decoding it would take too long.
    """
    match kind:
        case "PNG":
            return b"".join(_needed(data))
        case "JPEG":
            _check_jpeg(data)
        case "GIF":
            _check_gif(data)
        case "BMP":
            _check_bmp(data)
    return data


def _count(parts: int) -> int:
    if parts >= MOST_PARTS:
        raise ImageFileError(f"The image file has more than {MOST_PARTS} parts.")
    return parts + 1


def _needed(data: bytes) -> Iterator[bytes]:
    """The signature and chunks of a PNG; what is cut off stays cut off."""
    yield data[:8]
    place, parts = 8, 0
    found: set[bytes] = set()
    while place + 8 <= len(data):
        parts = _count(parts)
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if name in _PICTURE or _turns(data[place + 8 : end - 4], name, found):
            yield data[place:end]
        if name == b"IEND":
            return
        place = end


def _turns(body: bytes, name: bytes, found: set[bytes]) -> bool:
    """True for the first text under each name that may hold the orientation, if it is short."""
    keyword, _, rest = body.partition(b"\0")
    if name not in (b"tEXt", b"zTXt", b"iTXt") or keyword not in _TURNING or keyword in found:
        return False
    found.add(keyword)
    return _unpacked_size(name, rest) <= MOST_TEXT


def _unpacked_size(name: bytes, rest: bytes) -> int:
    """Bytes of a text, counted a little beyond MOST_TEXT; unreadable ones count as too many."""
    if name == b"tEXt" or (name == b"iTXt" and rest[:1] != b"\1"):
        return len(rest)
    packed = rest[1:] if name == b"zTXt" else rest[2:].split(b"\0", 2)[-1]
    try:
        size = len(zlib.decompressobj().decompress(packed, MOST_TEXT + 1))
    except zlib.error:
        return MOST_TEXT + 1
    return size if rest[:1] == b"\0" or name == b"iTXt" else MOST_TEXT + 1


# Everything but stuffed bytes, fill bytes and restart markers.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")


def _check_jpeg(data: bytes) -> None:
    """Count the segments and scans of the first picture in the file.

    A header that leads to no scan is refused here: Pillow would walk to its end, byte by byte.
    """
    place, parts, scans, fill = 2, 0, 0, 0
    while fill <= MOST_FILL and (marker := _MARKER.search(data, place)) is not None:
        parts = _count(parts)
        fill += 0 if scans else marker.start() - place
        code = marker[1][0]
        if code == 0xD9:
            break
        scans += code == 0xDA
        if scans > MOST_SCANS:
            raise ImageFileError(f"The JPEG has more than {MOST_SCANS} scans.")
        length = int.from_bytes(data[marker.end() : marker.end() + 2])
        place = marker.end() + (0 if code == 0x01 else max(length, 2))
    if not scans or fill > MOST_FILL:
        raise ImageFileError("The image is damaged or incomplete.")


def _check_gif(data: bytes) -> None:
    """Count the blocks before the first frame."""
    place = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 12 and data[10] & 0x80 else 0)
    parts = 0
    while place < len(data) and data[place] not in (0x2C, 0x3B):
        parts = _count(parts)
        if data[place] != 0x21:
            place += 1
            continue
        place += 2
        while place < len(data) and data[place]:
            parts = _count(parts)
            place += 1 + data[place]
        place += 1


def _check_bmp(data: bytes) -> None:
    runs = len(data) > 34 and data[14:18] != b"\x0c\0\0\0" and data[30] in (1, 2)
    if runs and len(data) > MOST_RUNS:
        raise ImageFileError(f"A run-length encoded BMP may have {MOST_RUNS} bytes; send a PNG.")
