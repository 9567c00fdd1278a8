"""The bytes inside a data URL, as libraries, shells and browsers really write them.

Names and media types are not trusted, so they are not read either: the bytes decide what an image
is. What cannot be mistaken is taken: any case, any parameters of the media type, percent-encoding,
line breaks and blanks, the URL-safe alphabet, too little or too much padding. Everything else is
refused with a message that helps.
"""

from __future__ import annotations

import binascii
import re

import numpy as np
from numpy.typing import NDArray

from saccade_server.api.errors import BadRequest

LONGEST_HEAD = 4096
"""Characters that a media type and its parameters may have, file names among them."""

# The last one counts: base64 holds neither ";" nor ",", so one before it is part of a name.
_BASE64 = re.compile(r"(?:^\s*data:|[;,])\s*base64\s*,", re.I)
_BLANKS = b" \t\r\n\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_ALPHABET = re.compile(rb"[A-Za-z0-9+/]*")

_PIECE_BYTES = 256 * 1024
_NO_DIGIT = 16
_DIGITS = np.full(256, _NO_DIGIT, np.uint8)  # values of hexadecimal digits
_DIGITS[np.frombuffer(b"0123456789", np.uint8)] = np.arange(10)
_DIGITS[np.frombuffer(b"abcdef", np.uint8)] = np.arange(10, 16)
_DIGITS[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)

EXAMPLE = "'data:image/png;base64,...'"


def is_data_url(url: str) -> bool:
    """True if ``url`` holds the image itself."""
    return url[:LONGEST_HEAD].lstrip()[:5].lower() == "data:"


def read_data_url(url: str, limit: int, param: str) -> bytes:
    """Return the bytes inside a data URL, at most ``limit`` of them.

    Raises:
        BadRequest: it is not a data URL, cannot be decoded, is empty or too large; ``param`` says
            where it is.
    """
    marks = list(_BASE64.finditer(url[:LONGEST_HEAD]))
    if marks:
        data = _from_base64(url[marks[-1].end() :], limit, param)
    else:
        data = _from_text(url, limit, param)
    if not data:
        raise BadRequest("The image is empty.", code="invalid_image", param=param)
    return data


def too_large(limit: int, param: str) -> BadRequest:
    """Refuse an image file of too many bytes."""
    message = f"An image may have {limit} bytes; send a smaller or more strongly compressed one."
    return BadRequest(message, code="image_too_large", param=param)


def _from_base64(text: str, limit: int, param: str) -> bytes:
    if not text.isascii():
        raise _invalid("it holds a character that is not ASCII", param)
    coded = text.encode()
    if b"%" in coded:
        coded = unquoted(coded)
    coded = coded.translate(_URL_SAFE, _BLANKS).partition(b"#")[0].rstrip(b"=")
    if len(coded) // 4 * 3 > limit + 3:
        raise too_large(limit, param)
    _check_alphabet(coded, param)
    if len(coded) % 4 == 1:
        raise _invalid("its length shows that something is missing", param)
    data = binascii.a2b_base64(coded + b"=" * (-len(coded) % 4))
    if len(data) > limit:
        raise too_large(limit, param)
    return data


def unquoted(data: bytes) -> bytes:
    """Percent-encoding undone; a percent sign without two hexadecimal digits stands for itself.

    As :func:`urllib.parse.unquote_to_bytes`, which makes an object of every percent sign: seconds
    and gigabytes for what fits into a body.
    """
    pieces = []
    start = 0
    while start < len(data):
        end = start + _PIECE_BYTES
        cut = data.rfind(b"%", end - 2, end) if end < len(data) else -1
        end = end if cut < 0 else cut  # an escape stays whole
        pieces.append(_unquoted(np.frombuffer(data[start:end], np.uint8)))
        start = end
    return b"".join(pieces)


def _unquoted(piece: NDArray[np.uint8]) -> bytes:
    signs = np.flatnonzero(piece[:-2] == ord("%"))
    high, low = _DIGITS[piece[signs + 1]], _DIGITS[piece[signs + 2]]
    escapes = (high < _NO_DIGIT) & (low < _NO_DIGIT)
    places = signs[escapes]  # none lies within another: their digits are no percent signs
    made = piece.copy()
    made[places] = high[escapes] * 16 + low[escapes]
    kept = np.ones(piece.size, bool)
    kept[places + 1] = kept[places + 2] = False
    return made[kept].tobytes()


def _check_alphabet(coded: bytes, param: str) -> None:
    found = _ALPHABET.match(coded)
    place = found.end() if found else 0
    if place == len(coded):
        return
    if coded[:2] in (b"b'", b'b"'):
        raise _invalid("it is the printed form of Python bytes; decode() them to text", param)
    char = coded[place : place + 1].decode("latin-1")
    raise _invalid(f"it holds the character {char!r}", param)


def _from_text(url: str, limit: int, param: str) -> bytes:
    """Percent-encoded bytes, the form of a data URL without base64."""
    head, comma, text = url.partition(",")
    if not comma or not is_data_url(head):
        message = f"An image data URL reads {EXAMPLE}."
        raise BadRequest(message, code="invalid_image_url", param=param)
    data = unquoted(text.encode())
    if len(data) > limit:
        raise too_large(limit, param)
    if "%" not in text and "<" not in text:
        message = f"The image data URL does not say base64; it reads {EXAMPLE}."
        raise BadRequest(message, code="invalid_image_url", param=param)
    return data


def _invalid(reason: str, param: str) -> BadRequest:
    message = f"The image data is not valid base64: {reason}."
    return BadRequest(message, code="invalid_image_url", param=param)
