"""Broken files: good ones of every format that a reader knows, damaged at random.

A reader takes a file, or refuses it with an error of its own. Anything else that it raises, and
time that it takes, is a fault.
"""

import io
import json
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from saccade_interventions.artifacts import ArtifactError, read_artifact, write_artifact
from saccade_server.api.body.parsing import parse
from saccade_server.api.body.schemas import ChatRequest
from saccade_server.api.errors import BadRequest, TooLarge
from saccade_server.api.images.media import ImageBudget
from saccade_server.api.settings import ApiSettings

MODEL = "sha256:" + "0" * 64
SECONDS = 2.0
"""That a reader may take for one file; good ones take milliseconds."""
NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)


@dataclass(frozen=True)
class Reader:
    """What reads files of some formats, good ones of each, and how it refuses others."""

    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    good: Mapping[str, bytes]
    mend: Callable[[bytes], bytes] = bytes
    """Makes sums right that would give a damage away before anything reads it."""


@dataclass
class Found:
    """What came of damaged files, by format."""

    files: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.files.values())


def damaged(data: bytes, random: random.Random, others: list[bytes]) -> bytes:
    """Some damages, one upon another."""
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        data = random.choice(DAMAGES)(data, random, others)
    return data


def _place(data: bytes, random: random.Random) -> int:
    """Anywhere, and often near the beginning, where headers are."""
    end = len(data) if random.random() < 0.5 else min(len(data), 64)
    return random.randrange(end + 1)


def _truncated(data: bytes, random: random.Random, _: list[bytes]) -> bytes:
    return data[: _place(data, random)]


def _flipped(data: bytes, random: random.Random, _: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _each in range(random.randint(1, 8)):
        if changed:
            changed[_place(data, random) % len(changed)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _renumbered(data: bytes, random: random.Random, _: list[bytes]) -> bytes:
    """A number where one may be, of any width and order of bytes."""
    place, width = _place(data, random), random.choice((1, 2, 4, 8))
    number = random.choice(NUMBERS) % 2 ** (8 * width)
    written: bytes = number.to_bytes(width, random.choice(("little", "big")))
    return data[:place] + written + data[place + width :]


def _cut(data: bytes, random: random.Random, _: list[bytes]) -> bytes:
    place = _place(data, random)
    return data[:place] + data[place + random.randint(1, 64) :]


def _doubled(data: bytes, random: random.Random, _: list[bytes]) -> bytes:
    place, length = _place(data, random), random.randint(1, 256)
    return (
        data[: place + length] + data[place : place + length] * random.randint(1, 4) + data[place:]
    )


def _filled(data: bytes, random: random.Random, _: list[bytes]) -> bytes:
    place = _place(data, random)
    return (
        data[:place]
        + random.choice((b"\0", b"\xff", b"A")) * random.randint(1, 4096)
        + data[place:]
    )


def _spliced(data: bytes, random: random.Random, others: list[bytes]) -> bytes:
    other = random.choice(others)
    return data[: _place(data, random)] + other[_place(other, random) :]


DAMAGES = (_truncated, _flipped, _renumbered, _cut, _doubled, _filled, _spliced)


def examine(name: str, reader: Reader, count: int, seed: int) -> Found:
    """Have ``count`` damaged files of each format read."""
    found, random_ = Found(), random.Random(f"{name} {seed}")
    others = list(reader.good.values())
    for form, good in reader.good.items():
        reader.read(good)
        for _ in range(count):
            data = damaged(good, random_, others)
            if random_.random() < 0.5:
                data = reader.mend(data)
            _read(reader, data, f"{name}, {form}", found)
    return found


def _read(reader: Reader, data: bytes, form: str, found: Found) -> None:
    found.files[form] += 1
    began = time.thread_time()
    try:
        reader.read(data)
    except reader.refusals:
        found.refused[form] += 1
    except Exception as error:
        found.problems[
            f"{form}: {type(error).__name__}: {str(error)[:200]}; {data[:2000].hex()}"
        ] += 1
    took = time.thread_time() - began
    found.slowest = max(found.slowest, took)
    if took > SECONDS:
        found.problems[f"{form}: {took:.1f} s; {data[:2000].hex()}"] += 1


def _pictures() -> dict[str, bytes]:
    """Every format that is read, in its modes."""

    def encoded(kind: str, mode: str, **options: object) -> bytes:
        file = io.BytesIO()
        noise.convert(mode).save(file, kind, **options)
        return file.getvalue()

    random_ = np.random.default_rng(0)
    noise = Image.fromarray(random_.integers(0, 256, (24, 32, 3), np.uint8), "RGB")
    modes = {"PNG": ("RGB", "RGBA", "L", "LA", "P", "1"), "JPEG": ("RGB", "L", "CMYK")}
    modes |= {"GIF": ("P", "L"), "BMP": ("RGB", "L", "P", "1"), "WEBP": ("RGB", "RGBA")}
    made = {f"{kind} {mode}": encoded(kind, mode) for kind, many in modes.items() for mode in many}
    made["JPEG progressive"] = encoded("JPEG", "RGB", progressive=True)
    made["PNG 16 bits"] = encoded("PNG", "I;16") if "I;16" in Image.MODES else made["PNG L"]
    made["WEBP lossless"] = encoded("WEBP", "RGBA", lossless=True)
    made["JPEG turned"] = encoded("JPEG", "RGB", exif=_turned())
    frames = [noise.rotate(90 * turn) for turn in range(3)]
    for kind in ("GIF", "WEBP", "PNG"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        made[f"{kind} animated"] = file.getvalue()
    return made


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def _decode(data: bytes) -> None:
    settings = ApiSettings("fuzz", max_image_pixels=4_000_000)
    decoded = ImageBudget(settings).open(data, "here").decode()
    if decoded.picture.mode != "RGB":
        raise AssertionError(f"decoded to {decoded.picture.mode}")


def _mended_png(data: bytes) -> bytes:
    """Every chunk of a PNG with the sum that it should have."""
    if not data.startswith(b"\x89PNG"):
        return data
    whole, place = data[:8], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        body = data[place + 4 : place + 8 + length]
        if place + 12 + length > len(data):
            break
        whole += data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return whole + data[place:]


def some_artifacts(fingerprint: str, hidden: int, head: int) -> Iterator[bytes]:
    """One of several kinds, for a model of two layers and heads or more."""
    numbers = np.random.default_rng(1)

    def some(*shape: int) -> np.ndarray:
        return numbers.normal(size=shape).astype(np.float32)

    layers, pairs = np.asarray([0, 1], np.int32), np.asarray([[0, 1], [1, 0]], np.int32)
    kinds: dict[str, dict[str, np.ndarray]] = {
        "vectors": {"vectors": some(2, hidden), "layers": layers},
        "heads": {"heads": pairs},
        "head_vectors": {"heads": pairs, "vectors": some(2, head)},
        "diagonal": {"scale": some(2, hidden), "shift": some(2, hidden), "layers": layers},
    }
    for kind, arrays in kinds.items():
        yield write_artifact(kind, fingerprint, arrays)


def _bodies() -> dict[str, bytes]:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hé\u4f60\U0001f600"}]}],
        "temperature": 0.5,
        "logit_bias": {"1": -1e1},
        "stop": ["a", "b"],
        "interventions": [{"method": "pai", "alpha": 0.5}],
        "trace": {"masses": {"rows": {"answer": [0, 2]}}},
    }
    return {
        "ascii": json.dumps(body).encode(),
        "utf-8": json.dumps(body, ensure_ascii=False).encode(),
    }


def _numbered(files: Iterable[bytes]) -> dict[str, bytes]:
    return {str(number): data for number, data in enumerate(files)}


READERS: dict[str, Reader] = {
    "images": Reader(_decode, (BadRequest, TooLarge), _pictures(), _mended_png),
    "artifacts": Reader(read_artifact, (ArtifactError,), _numbered(some_artifacts(MODEL, 8, 8))),
    "bodies": Reader(lambda data: parse(data, ChatRequest), (BadRequest, TooLarge), _bodies()),
}
