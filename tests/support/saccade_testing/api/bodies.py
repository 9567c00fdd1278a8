"""What a client sends, pictures among it, and the events that it reads."""

import base64
import io
import json

from PIL import Image

from saccade_interventions.base import PROBE_SIDE

MODEL = "saccade-test"
"""The name that the servers of these tests give their model."""


def parse_events(text: str) -> list[object]:
    blocks = [block for block in text.split("\n\n") if block.startswith("data: ")]
    return [
        block[6:] if block == "data: [DONE]" else json.loads(block.removeprefix("data: "))
        for block in blocks
    ]


def chat_body(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]} | fields


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def image_messages(*urls: str, text: str = "What is this?") -> list[dict[str, object]]:
    parts = [image_part(url) for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


PICTURE = data_url(encode(Image.new("RGB", (8, 6), "red")))
PROBED = data_url(encode(Image.new("RGB", (PROBE_SIDE, PROBE_SIDE), "red")))
"""As large as methods' probes expect."""
