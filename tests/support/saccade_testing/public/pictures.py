"""One small scene as every kind of file that people send."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64
WHITE = (255, 255, 255)
PINK = (255, 0, 255)
DARK = (30, 30, 30)
ORIENTATION = 0x0112

TURN = Image.Transpose
STORED = {
    1: None,
    2: TURN.FLIP_LEFT_RIGHT,
    3: TURN.ROTATE_180,
    4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_90,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_270,
}
"""How a camera stores an upright scene under each EXIF orientation."""


def scene(background: tuple[int, int, int] = DARK) -> Image.Image:
    """A red circle and a blue square; a mark makes every flip and turn another picture."""
    made = Image.new("RGB", (SIDE, SIDE), background)
    draw = ImageDraw.Draw(made)
    draw.ellipse((6, 6, 24, 24), fill=(220, 30, 30))
    draw.rectangle((40, 40, 58, 58), fill=(30, 60, 220))
    draw.rectangle((0, 44, 5, 63), fill=(90, 90, 90))
    return made


def gray() -> Image.Image:
    """The scene without its colours."""
    return scene().convert("L")


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def decode(data: bytes) -> bytes:
    """The same pixels as an RGB PNG, the plainest file there is."""
    return encode(Image.open(io.BytesIO(data)).convert("RGB"))


def data_url(data: bytes, media: str = "image/png") -> str:
    """The URL that holds a file."""
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def oriented(orientation: int, kind: str = "PNG", size: int = SIDE, **options: Any) -> bytes:
    """The scene as a camera stores it that was held another way."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turn = STORED[orientation]
    stored = scene() if turn is None else scene().transpose(turn)
    if size != SIDE:
        stored = stored.resize((size, size * 3 // 4), Image.Resampling.NEAREST)
    return encode(stored, kind, exif=exif, **options)


def cut_out(kind: str = "PNG", **options: Any) -> bytes:
    """The scene on nothing, with a colour under the transparent pixels that nobody may see."""
    layer = np.asarray(scene(PINK).convert("RGBA")).copy()
    layer[(layer[..., :3] == PINK).all(-1), 3] = 0
    return encode(Image.fromarray(layer), kind, **options)


def paletted(background: tuple[int, int, int] = PINK, kind: str = "PNG") -> bytes:
    """A palette with one transparent entry: the background's."""
    picture = scene(background).quantize(8)
    return encode(picture, kind, transparency=picture.getpixel((0, 0)))


def keyed() -> bytes:
    """RGB with one colour declared transparent (tRNS)."""
    return encode(scene(PINK), transparency=PINK)


def opaque(mode: str) -> bytes:
    """An alpha channel that hides nothing."""
    base = gray() if mode == "LA" else scene()
    base.putalpha(255)
    return encode(base.convert(mode))


def animated(kind: str, **options: Any) -> bytes:
    """Two frames, the first of which is the scene."""
    second = scene().transpose(TURN.ROTATE_180)
    more = {"save_all": True, "append_images": [second], "duration": 100, "loop": 0}
    return encode(scene(), kind, **(more | options))


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def deep(picture: Image.Image) -> bytes:
    """A PNG of 16 bits a channel, each 8-bit value in the high byte."""
    values = np.asarray(picture)
    rows = np.repeat(values.reshape(SIDE, -1), 2, axis=1)
    rows[:, 1::2] = 0
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[len(picture.getbands())]
    return _png(16, colour, b"".join(b"\0" + row.tobytes() for row in rows))


def interlaced(picture: Image.Image) -> bytes:
    """An RGB PNG in the seven passes of Adam7, as older tools save for the web."""
    values = np.asarray(picture)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
    passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [
        b"\0" + row.tobytes() for y, x, down, right in passes for row in values[y::down, x::right]
    ]
    return _png(8, 2, b"".join(rows), interlace=1)


def bitmap(bits: int = 24, top_down: bool = False) -> bytes:
    """A BMP as Windows programs write it; the fourth byte of 32 bits means nothing there."""
    values = np.asarray(scene())[..., ::-1]
    values = values if top_down else values[::-1]
    if bits == 32:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    pixels = values.tobytes()
    sizes = (40, SIDE, -SIDE if top_down else SIDE, 1, bits, 0, len(pixels), 2835, 2835, 0, 0)
    header = b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54)
    return header + struct.pack("<IiiHHIIiiII", *sizes) + pixels


def tagged(value: int, data: bytes | None = None) -> bytes:
    """The scene with an orientation that does not exist, or with EXIF that is none."""
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return encode(scene(), exif=exif.tobytes() if data is None else b"Exif\0\0" + data)


def misread(piece: bytes) -> bytes:
    """A chunk whose checksum is wrong."""
    return piece[:-1] + bytes([piece[-1] ^ 1])


def _png(depth: int, colour: int, rows: bytes, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, interlace)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def annotated(*chunks: bytes) -> bytes:
    """The scene with chunks of metadata before its pixels."""
    return SCENE[:33] + b"".join(chunks) + SCENE[33:]


def compressed_text(name: bytes, size: int) -> bytes:
    """A text chunk that unpacks to ``size`` bytes."""
    keyword = {b"zTXt": b"workflow\0\0", b"iTXt": b"prompt\0\1\0\0\0", b"iCCP": b"profile\0\0"}
    return chunk(name, keyword[name] + zlib.compress(b"x" * size))


def segments(count: int) -> bytes:
    """A JPEG with ``count`` full application segments, as editors leave their history in one."""
    data = encode(scene(), "JPEG", quality=95)
    segment = b"\xff\xeb" + struct.pack(">H", 65535) + b"x" * 65533
    return data[:2] + segment * count + data[2:]


SCENE = encode(scene())
URL = data_url(SCENE)
PALE = data_url(encode(scene(WHITE)))
"""The demo model is unsure of this one, so strengths, seeds and penalties show."""
